"""All paths: the API's, the console's and the admin's."""

from django.contrib import admin
from django.urls import include, path

from openai_api.console import playground

urlpatterns = [
    path("", playground.home),
    path("playground/", include(playground)),
    path("admin/", admin.site.urls),
    path("", include("openai_api.urls")),
]
handler400 = "openai_api.errors.bad_request"
handler403 = "openai_api.errors.permission_denied"
handler404 = "openai_api.errors.not_found"
handler500 = "openai_api.errors.server_error"
