"""/v1/score, as vLLM has it: how well documents fit queries, or what answers are worth to a reward model."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from server.http.body import json_body
from server.http.keys.deps import CallerDep
from server.inference.inference import ReadyInference
from server.model.served import ModelDep
from server.pooling import pairs
from server.pooling.activation import activated
from server.pooling.asking import Asking, respond, usage
from server.pooling.pairs import Texts, texts_of
from server.pooling.schema import ScoreBody

router = APIRouter()


@router.post("/v1/score", response_model=None)
@router.post("/score", response_model=None, name="score_without_version")
async def score(
    request: Request,
    body: Annotated[ScoreBody, json_body(ScoreBody)],
    caller: CallerDep,
    model: ModelDep,
    inference: ReadyInference,
) -> Response:
    return await respond(request, body, caller, model, inference, answer)


async def answer(asking: Asking[ScoreBody]) -> dict[str, Any]:
    body, head = asking.body, asking.head
    one, other = body.pair
    texts = Texts(queries=getattr(body, one), documents=texts_of(getattr(body, other)), names=(one, other))

    def read(logit: float) -> float:
        assert head is not None, "it has given a logit"
        return activated([logit], head, asked=body.activates)[0]

    scored = await pairs.score(asking, texts, read)
    data = [{"index": index, "object": "score", "score": each} for index, each in enumerate(scored.scores)]
    return {**asking.named("score"), "data": data, "usage": usage(scored.tokens)}
