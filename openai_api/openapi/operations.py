"""Every operation of the API: what it is called, and what it takes and gives."""

from typing import NamedTuple

from openai_api.serializers.chat import ChatCompletionSerializer
from openai_api.serializers.completions import CompletionSerializer
from openai_api.serializers.conversations import (
    ConversationItemsSerializer,
    ConversationSerializer,
    ConversationUpdateSerializer,
)
from openai_api.serializers.fields import BodySerializer
from openai_api.serializers.queries import ItemsQuery, PageQuery, ResponseQuery, StoredChatsQuery
from openai_api.serializers.responses import ResponseSerializer
from openai_api.serializers.stored_chats import StoredChatUpdateSerializer
from openai_api.serializers.tokenize import DetokenizeSerializer, TokenizeSerializer


class Operation(NamedTuple):
    id: str
    summary: str
    answer: str  # one of `answers.ANSWERS`
    body: type[BodySerializer] | None = None
    query: type[BodySerializer] | None = None
    events: str = ""  # what a stream consists of, where one can be asked for
    optional: tuple[str, ...] = ()  # fields that this operation does not require


CHUNKS = "Chunks as `data:` lines, the last of which is `[DONE]`; an error is a chunk with `error`."
EVENTS = "Events of the Responses API, numbered by `sequence_number`; at the end `data: [DONE]`."

CHATS, RESPONSES = "/v1/chat/completions", "/v1/responses"
CONVERSATIONS = "/v1/conversations"
ONE_CHAT, ONE_RESPONSE = f"{CHATS}/{{completion_id}}", f"{RESPONSES}/{{response_id}}"
ONE_CONVERSATION = f"{CONVERSATIONS}/{{conversation_id}}"
ONE_ITEM = f"{ONE_CONVERSATION}/items/{{item_id}}"

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/models"): Operation("listModels", "List the names of the model", "Models"),
    ("GET", "/v1/models/{name}"): Operation("retrieveModel", "One name of the model", "Model"),
    ("DELETE", "/v1/models/{name}"): Operation(
        "deleteModel", "Always refused: no model was fine-tuned here", "Error"
    ),
    ("POST", CHATS): Operation(
        "createChatCompletion", "Chat", "ChatCompletion", ChatCompletionSerializer, events=CHUNKS
    ),
    ("GET", CHATS): Operation(
        "listChatCompletions", "Stored chat completions", "ChatCompletions", query=StoredChatsQuery
    ),
    ("GET", ONE_CHAT): Operation(
        "getChatCompletion", "A stored chat completion", "ChatCompletion"
    ),
    ("POST", ONE_CHAT): Operation(
        "updateChatCompletion", "Its metadata", "ChatCompletion", StoredChatUpdateSerializer
    ),
    ("DELETE", ONE_CHAT): Operation(
        "deleteChatCompletion", "Delete it", "ChatCompletionDeleted"
    ),
    ("GET", f"{ONE_CHAT}/messages"): Operation(
        "getChatCompletionMessages", "The messages it answered", "ChatMessages", query=PageQuery
    ),
    ("POST", "/v1/completions"): Operation(
        "createCompletion", "Continue a text", "Completion", CompletionSerializer, events=CHUNKS
    ),
    ("POST", RESPONSES): Operation(
        "createResponse", "A Response", "Response", ResponseSerializer, events=EVENTS
    ),
    ("POST", f"{RESPONSES}/input_tokens"): Operation(
        "countInputTokens", "How long the prompt would be", "InputTokens", ResponseSerializer,
        optional=("model",),
    ),
    ("POST", f"{RESPONSES}/compact"): Operation(
        "compactResponse", "A conversation as a summary to go on with", "Compaction",
        ResponseSerializer,
    ),
    ("GET", ONE_RESPONSE): Operation(
        "getResponse", "A stored Response, or its events", "Response", query=ResponseQuery,
        events=EVENTS,
    ),
    ("DELETE", ONE_RESPONSE): Operation("deleteResponse", "Delete it", "ResponseDeleted"),
    ("POST", f"{ONE_RESPONSE}/cancel"): Operation(
        "cancelResponse", "End what runs in the background", "Response"
    ),
    ("GET", f"{ONE_RESPONSE}/input_items"): Operation(
        "listInputItems", "The items of its own request", "Items", query=ItemsQuery
    ),
    ("POST", CONVERSATIONS): Operation(
        "createConversation", "A conversation", "Conversation", ConversationSerializer
    ),
    ("GET", ONE_CONVERSATION): Operation(
        "getConversation", "One of them", "Conversation"
    ),
    ("POST", ONE_CONVERSATION): Operation(
        "updateConversation", "Its metadata", "Conversation", ConversationUpdateSerializer
    ),
    ("DELETE", ONE_CONVERSATION): Operation(
        "deleteConversation", "Delete it", "ConversationDeleted"
    ),
    ("GET", f"{ONE_CONVERSATION}/items"): Operation(
        "listConversationItems", "Its items", "Items", query=ItemsQuery
    ),
    ("POST", f"{ONE_CONVERSATION}/items"): Operation(
        "createConversationItems", "Add items", "Items", ConversationItemsSerializer
    ),
    ("GET", ONE_ITEM): Operation("getConversationItem", "One of its items", "Item"),
    ("DELETE", ONE_ITEM): Operation("deleteConversationItem", "Take it out", "Conversation"),
    ("POST", "/tokenize"): Operation(
        "tokenize", "Text or messages to token ids", "Tokens", TokenizeSerializer,
        optional=("messages",),
    ),
    ("POST", "/detokenize"): Operation("detokenize", "And back", "Text", DetokenizeSerializer),
}  # fmt: skip
