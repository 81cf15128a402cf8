"""All paths: the API's, and the admin."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("", include("openai_api.urls")),
]
handler400 = "openai_api.errors.bad_request"
handler403 = "openai_api.errors.permission_denied"
handler404 = "openai_api.errors.not_found"
handler500 = "openai_api.errors.server_error"
