"""How generation fails. `openai_api.errors` gives each of these its HTTP meaning.

EngineError
    ModelLoadError        the model cannot be served: missing, unsupported, too large
    EngineNotReady        the model is still loading, or the engine has stopped
        ShuttingDown      the server is about to end: this request, or this answer, is for the next
    EngineOverloaded      the waiting queue is full
        QueueTimeout      the request has waited too long for its turn
    EngineFailed          a step raised; the request is lost, the cause is in the log
        EngineLost        the engine ended under the request; another one takes its place
        ConstraintFailed  the answer left its grammar, or the grammar its limits
    PromptTooLong         prompt and reserved output do not fit into the context
    InvalidPrompt         the prompt cannot be built or holds token ids the model has not
    InvalidGrammar        a schema, regular expression or grammar that cannot be followed
"""


class EngineError(Exception):
    """Anything that keeps the engine from answering."""


class ModelLoadError(EngineError):
    """The model cannot be served; the message tells the operator why and what to do."""


class EngineNotReady(EngineError):
    """No model is ready to answer. `retry_after_s` is a guess, in seconds."""

    def __init__(self, message: str, retry_after_s: float = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(EngineNotReady):
    """The server is about to end. Raised for new requests, and at last for unfinished ones."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", retry_after_s=10)


class EngineOverloaded(EngineError):
    """The waiting queue is full. `retry_after_s` is a guess, in seconds."""

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueTimeout(EngineOverloaded):
    """The request has waited too long for its turn; nothing of it was computed."""


class EngineFailed(EngineError):
    """A step raised while this request was running."""


class EngineLost(EngineFailed):
    """The engine ended while this request was running. The next one can go on with it."""


class ConstraintFailed(EngineFailed):
    """The answer left its grammar, or the grammar grew beyond what one step may cost."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for an answer in the model's context."""


class InvalidPrompt(EngineError):
    """The prompt cannot be built: a template error, or token ids outside the vocabulary."""


class InvalidGrammar(EngineError):
    """A schema, regular expression or grammar that is wrong, too large, or not supported."""
