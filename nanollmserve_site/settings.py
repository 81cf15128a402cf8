"""Django's settings. What an operator can choose is declared in the three configs."""

import logging
import os
import sys

from dotenv import load_dotenv

from inference.config import EngineConfig
from nanollmserve_site import __version__, env
from nanollmserve_site.config import BASE_DIR, ServerConfig
from nanollmserve_site.databases import database
from nanollmserve_site.state import secret_key
from openai_api.config import ApiConfig

load_dotenv(BASE_DIR / ".env")  # what the environment has wins
# Torch's threads wait for each other thousands of times a second, mostly for some microseconds. To
# sleep then costs more than the work in between. To spin as long as they do by default starves the
# web's thread, and halves the speed of both as soon as another process wants a core.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
env.refuse_unknown(os.environ)
VERSION = __version__  # both sides of an engine's socket must have it
ENGINE = env.read(EngineConfig, os.environ)
API = env.read(ApiConfig, os.environ)
SERVER = env.read(ServerConfig, os.environ)

SECRET_KEY = secret_key(SERVER.data_dir)
DEBUG = SERVER.debug
OWN_HOSTS = {"localhost", "127.0.0.1", "[::1]"}
OWN_HOSTS.add(f"[{SERVER.host}]" if ":" in SERVER.host else SERVER.host)
ALLOWED_HOSTS = sorted({*OWN_HOSTS, *SERVER.allowed_hosts})
CSRF_TRUSTED_ORIGINS = list(SERVER.csrf_trusted_origins)

INSTALLED_APPS = [
    "openai_api.console.apps.ConsoleConfig",  # django.contrib.admin with a dashboard
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "inference",
    "openai_api",
    "nanollmserve_site",
]
# The API's paths go past all of these: see asgi.py.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "nanollmserve_site.browser.content_security_policy",
    "nanollmserve_site.browser.login_throttle",
]
ROOT_URLCONF = "nanollmserve_site.urls"
ASGI_APPLICATION = "nanollmserve_site.asgi.application"
APPEND_SLASH = False
STATIC_URL = "/static/"
TIME_ZONE = "UTC"
USE_TZ = True
DATA_UPLOAD_MAX_MEMORY_SIZE = API.max_body_size

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": database(SERVER)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["openai_api.policies.parsers.StrictJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "openai_api.policies.negotiation.AlwaysJSON",
    "EXCEPTION_HANDLER": "openai_api.errors.exception_handler",
    "DEFAULT_AUTHENTICATION_CLASSES": ["openai_api.policies.authentication.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "openai_api.openapi.document.AutoSchema",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "nanoLLMServe",
    "DESCRIPTION": "OpenAI's API. Unknown fields are ignored, and null means not given.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for subdomains and
    "security.W021",  # preloading: the domain's owner decides, in the proxy
    "security.W008",  # redirecting plain HTTP is the proxy's work
]
if SERVER.tls:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
else:  # on plain HTTP a browser would send no secure cookie back; `serve` says so
    SILENCED_SYSTEM_CHECKS += ["security.W004", "security.W012", "security.W016"]


def is_unexpected(record: logging.LogRecord) -> bool:
    """Django logs every 4xx and 5xx answer; those that we give on purpose are no news."""
    return record.exc_info is not None


def without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None  # anybody can send a wrong Host header, as often as they like
    return True


CALLBACK = "django.utils.log.CallbackFilter"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "request": {"()": "nanollmserve_site.request_id.AddRequestId"},
        "unexpected": {"()": CALLBACK, "callback": is_unexpected},
        "short": {"()": CALLBACK, "callback": without_traceback},
    },
    "formatters": {
        "line": {
            "format": "%(asctime)s %(levelname)-7s %(name)s%(request)s: %(message)s",
            "datefmt": "%Y-%m-%d %H:%M:%S",
        },
        "json": {"()": "nanollmserve_site.log_format.JsonFormatter"},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "json" if SERVER.log_format == "json" else "line",
            "filters": ["request"],
        }
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        # Django's own handlers would print a line twice, or mail it.
        "django": {"handlers": [], "level": SERVER.log_level},
        "django.request": {"filters": ["unexpected"]},
        "django.security.DisallowedHost": {"filters": ["short"]},
        "daphne": {"level": "INFO"},  # says where it listens
        "inference": {"level": SERVER.log_level},
        "openai_api": {"level": SERVER.log_level},
        "nanollmserve": {"level": SERVER.log_level},
    },
}
