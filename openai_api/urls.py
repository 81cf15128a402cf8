from django.urls import path, re_path

from openai_api.views import docs, health, metrics
from openai_api.views.chat import ChatCompletionsView
from openai_api.views.completions import CompletionsView
from openai_api.views.conversations import (
    ConversationItemsView,
    ConversationItemView,
    ConversationsView,
    ConversationView,
)
from openai_api.views.models import ModelsView, ModelView
from openai_api.views.response_extras import CompactView, InputTokensView
from openai_api.views.responses import (
    CancelResponseView,
    ResponseInputItemsView,
    ResponsesView,
    ResponseView,
)
from openai_api.views.stored_chats import StoredChatMessagesView, StoredChatView
from openai_api.views.tokenize import DetokenizeView, TokenizeView
from openai_api.views.unknown import UnknownView

urlpatterns = [
    path("health", health.live),
    path("health/ready", health.ready),
    path("metrics", metrics.show),
    path("docs/", docs.page),
    path("v1/openapi.json", docs.openapi, name="openapi"),
    path("v1/models", ModelsView.as_view()),
    path("v1/models/<path:name>", ModelView.as_view()),
    path("v1/chat/completions", ChatCompletionsView.as_view()),
    path("v1/chat/completions/<str:completion_id>", StoredChatView.as_view()),
    path("v1/chat/completions/<str:completion_id>/messages", StoredChatMessagesView.as_view()),
    path("v1/completions", CompletionsView.as_view()),
    path("v1/responses", ResponsesView.as_view()),
    path("v1/responses/input_tokens", InputTokensView.as_view()),
    path("v1/responses/compact", CompactView.as_view()),
    path("v1/responses/<str:response_id>", ResponseView.as_view()),
    path("v1/responses/<str:response_id>/cancel", CancelResponseView.as_view()),
    path("v1/responses/<str:response_id>/input_items", ResponseInputItemsView.as_view()),
    path("v1/conversations", ConversationsView.as_view()),
    path("v1/conversations/<str:conversation_id>", ConversationView.as_view()),
    path("v1/conversations/<str:conversation_id>/items", ConversationItemsView.as_view()),
    path(
        "v1/conversations/<str:conversation_id>/items/<str:item_id>",
        ConversationItemView.as_view(),
    ),
    path("tokenize", TokenizeView.as_view()),
    path("detokenize", DetokenizeView.as_view()),
    re_path("^v1(/.*)?$", UnknownView.as_view()),
]
