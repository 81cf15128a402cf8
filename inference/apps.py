"""The engine as a Django app. Loading a model is asgi.py's decision: nothing happens here."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
