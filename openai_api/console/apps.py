from django.contrib.admin.apps import AdminConfig


class ConsoleConfig(AdminConfig):
    """Django's admin, whose site is ours."""

    default_site = "openai_api.console.site.ConsoleSite"
