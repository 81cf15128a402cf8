"""The admin of keys: who may use the API, and how much of it they have used."""

import csv

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import path, reverse

from openai_api.admin_lists import LookingAdmin, badge
from openai_api.console.usage_charts import usage_charts
from openai_api.models import ApiKey, Usage

LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "tokens_per_day")


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    """Keys are made, changed and revoked, and never deleted: what they own must stay theirs."""

    list_display = ("name", "hint", "status", "created_at", "expires_at", "last_used_at", *LIMITS)
    search_fields = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "expires_at", "allowed_models")}),
        ("Limits", {"fields": LIMITS, "description": "What is left out has no limit."}),
    )
    facts = ("hint", "status", "created_at", "last_used_at", "revoked_at")
    actions = ("revoke",)

    class Media:
        css = {"all": ("openai_api/admin.css",)}

    def get_fieldsets(self, request, obj=None):
        facts = [("Key", {"fields": self.facts})] if obj else []
        return [*self.fieldsets, *facts]

    def get_readonly_fields(self, request, obj=None):
        return self.facts

    def has_delete_permission(self, request, obj=None):
        return False

    def save_model(self, request, obj, form, change):
        secret = None if change else obj.set_secret()
        super().save_model(request, obj, form, change)
        if secret:
            message = f"The secret of this key is shown this once: {secret}"
            self.message_user(request, message, messages.WARNING)

    @admin.action(description="Revoke the selected keys", permissions=["change"])
    def revoke(self, request, queryset):
        keys = list(queryset.filter(revoked_at=None))
        for key in keys:
            key.revoke()
        self.message_user(request, f"Revoked: {', '.join(map(str, keys)) or 'none'}.")

    @admin.display(description="key")
    def hint(self, key) -> str:
        return key.hint

    @admin.display(description="state")
    def status(self, key) -> str:
        return badge(key.state, key.state)


@admin.register(Usage)
class UsageAdmin(LookingAdmin):
    list_display = (
        "day",
        "key",
        "num_requests",
        "num_prompt_tokens",
        "num_cached_tokens",
        "num_completion_tokens",
    )
    list_filter = ("key", "day")
    list_select_related = ("key",)
    sortable_by = list_display
    change_list_template = "admin/openai_api/usage/change_list.html"

    def has_delete_permission(self, request, obj=None):
        return False

    def changelist_view(self, request, extra_context=None):
        """Charts of what the list's filters leave, above it."""
        response = super().changelist_view(request, extra_context)
        if "cl" in (getattr(response, "context_data", None) or {}):
            rows = response.context_data["cl"].get_queryset(request)
            response.context_data["charts"] = usage_charts(rows)
        return response

    def get_urls(self):
        view = self.admin_site.admin_view(self.csv)
        return [path("csv/", view, name="openai_api_usage_csv"), *super().get_urls()]

    def csv(self, request):
        """All that the list's filters leave, as a file for a spreadsheet."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            rows = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(reverse("admin:openai_api_usage_changelist"))
        columns = ("day", "key__name", *self.list_display[2:])
        response = HttpResponse(
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="usage.csv"'},
        )
        writer = csv.writer(response)
        writer.writerow(name.removeprefix("num_").removesuffix("__name") for name in columns)
        writer.writerows(rows.values_list(*columns).iterator())
        return response
