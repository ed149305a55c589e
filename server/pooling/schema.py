"""The requests for classes, scores and ranks as they arrive, in vLLM's, Jina's and Cohere's fields."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from server.http.body import Items, RequestBody
from server.http.field_limits import MAX_PROMPTS, MAX_TOKENS, Name, Options, Text
from server.openai.inputs import Inputs
from server.openai.schema import INT64, CacheSalt, ConversationFields, Messages
from server.openai.truncation import TruncationFields


class PoolingFields(TruncationFields):
    model: Name | None = None
    """The base model unless given."""
    user: Name | None = None
    priority: int = Field(0, ge=-INT64, lt=INT64)
    """Lower is sooner. Below 0 for keys with the role admin only."""
    cache_salt: CacheSalt | None = None
    use_activation: bool | None = None
    """False: the logits as they are."""
    activation: bool | None = None
    """Earlier name of `use_activation`."""
    softmax: bool | None = None
    """Its first name."""

    @property
    def activates(self) -> bool | None:
        given = (self.use_activation, self.activation, self.softmax)
        return next((each for each in given if each is not None), None)


class ClassifyBody(ConversationFields, PoolingFields):
    """Texts, or the messages of one conversation."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["input"]}, {"required": ["messages"]}]})

    input: Inputs | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Unless given, they are added to texts; a chat template writes its own."""
    add_generation_prompt: bool = False


class Document(RequestBody):
    """Jina's and Cohere's form of a document."""

    text: Text


def _one_as_many(value: Any) -> Any:
    """A single text, document or conversation as a list of them."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return [value]
    return value if isinstance(value, list) else [value]


Query = Text | Messages
"""A text, or the messages of a conversation that is to be answered."""
QueryList = Annotated[Items[Query], Field(min_length=1, max_length=MAX_PROMPTS)]
Queries = Annotated[QueryList, BeforeValidator(_one_as_many, json_schema_input_type=Query | QueryList)]
DocumentList = Annotated[Items[Text | Document], Field(min_length=1, max_length=MAX_PROMPTS)]
Documents = Annotated[
    DocumentList, BeforeValidator(_one_as_many, json_schema_input_type=Text | Document | DocumentList)
]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class PairFields(PoolingFields):
    max_tokens_per_query: Count = 0
    """Tokens of each query that are read; 0: all."""
    max_tokens_per_doc: Count = 0
    instruction: Text | None = None
    """What a chat template gets as its variable of that name."""
    chat_template_kwargs: Options = Field(default_factory=dict)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        said = {} if self.instruction is None else {"instruction": self.instruction}
        return said | self.chat_template_kwargs


NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class ScoreBody(PairFields):
    """Queries and documents, under one of vLLM's pairs of names: one and one, one and many, or as many as many."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": list(names)} for names in NAMES]})

    text_1: Queries | None = None
    text_2: Documents | None = None
    queries: Queries | None = None
    documents: Documents | None = None
    items: Documents | None = None
    data_1: Queries | None = None
    data_2: Documents | None = None

    @model_validator(mode="after")
    def _has_one_pair(self) -> Self:
        names = {name for pair in NAMES for name in pair if getattr(self, name) is not None}
        if names not in map(set, NAMES):
            known = ", ".join(" and ".join(map(repr, pair)) for pair in NAMES)
            raise ValueError(f"give the two texts by one pair of names: {known}")
        return self

    @property
    def pair(self) -> tuple[str, str]:
        """The names that were used."""
        return next(pair for pair in NAMES if all(getattr(self, name) is not None for name in pair))


class RerankBody(PairFields):
    """Jina's request, which vLLM's is, too."""

    query: Query
    documents: Documents
    top_n: int = Field(0, ge=0)
    """Most results; 0: all."""
    return_documents: bool = True


class CohereRerankBody(RerankBody):
    """Cohere's request of its second version."""

    max_tokens_per_doc: Count = 4096
    return_documents: bool = False
