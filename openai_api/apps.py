from django.apps import AppConfig


class OpenaiApiConfig(AppConfig):
    name = "openai_api"
    verbose_name = "OpenAI API"
    default_auto_field = "django.db.models.BigAutoField"
