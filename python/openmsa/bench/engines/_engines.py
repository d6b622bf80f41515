"""The engines. Each is made of Settings, with openmsa in it or without, and serves one load after the other."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time

from ._loads import WARM_STEPS, Request

#: The page of M3's caches.
PAGE = 128


@dataclasses.dataclass(frozen=True)
class Settings:
    """model           folder of a checkpoint
    with_openmsa
    chunk              tokens of a step
    max_batch          requests at once
    max_tokens         of all requests in the caches
    max_context        of one
    cache_bytes        for max_tokens
    is_mixed           whether a step may have decodes and chunks of prompts
    attention_backend  of dense layers, as the engine names it; "": its own choice
    keeps_prompts      whether the engine has its cache of prefixes
    """

    model: str
    with_openmsa: bool
    chunk: int
    max_batch: int
    max_tokens: int
    max_context: int
    cache_bytes: int
    is_mixed: bool = False
    attention_backend: str = ""
    keeps_prompts: bool = False

    @property
    def attention_options(self) -> dict[str, str]:
        """The argument of either engine, where there is one."""
        return {"attention_backend": self.attention_backend} if self.attention_backend else {}


Times = tuple[list[float], list[list[float]]]


class Vllm:
    """Through the engine's own step(), as its LLM does. VLLM_ENABLE_V1_MULTIPROCESSING=0 runs it in one process."""

    @staticmethod
    def import_modules() -> None:
        import vllm.v1.engine.llm_engine  # noqa: F401

    def __init__(self, settings: Settings):
        from vllm import LLM

        llm = LLM(
            settings.model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            block_size=PAGE,
            max_model_len=settings.max_context,
            max_num_batched_tokens=settings.chunk,
            max_num_seqs=settings.max_batch,
            kv_cache_memory_bytes=settings.cache_bytes,
            gpu_memory_utilization=0.1,  # has to be free; with kv_cache_memory_bytes it means nothing else
            enable_prefix_caching=settings.keeps_prompts,
            generation_config="vllm",
            additional_config={"openmsa": settings.with_openmsa},
            **settings.attention_options,
        )
        self._engine = llm.llm_engine
        self._num_requests = 0

    def serve(self, requests: list[Request]) -> Times:
        from vllm import SamplingParams

        waiting = {}  # by the engine's name of a request, its place
        sent = [0.0] * len(requests)
        arrivals: list[list[float]] = [[] for _ in requests]
        to_send = list(enumerate(requests))
        prompts = [request.prompt() for request in requests]
        begin = time.perf_counter()

        while to_send or self._engine.has_unfinished_requests():
            while to_send and _may_send(to_send[0][1], arrivals[: to_send[0][0]]):
                place, request = to_send.pop(0)
                self._num_requests += 1
                waiting[f"bench-{self._num_requests}"] = place
                sampling = SamplingParams(
                    temperature=0.0, max_tokens=request.num_new, ignore_eos=True, detokenize=False
                )
                sent[place] = time.perf_counter() - begin
                self._engine.add_request(f"bench-{self._num_requests}", {"prompt_token_ids": prompts[place]}, sampling)
            outputs = self._engine.step()
            now = time.perf_counter() - begin
            for output in outputs:
                _count(arrivals[waiting[output.request_id]], len(output.outputs[0].token_ids), now)
        return sent, arrivals


class Sglang:
    """Through the streams of its Engine, whose scheduler is another process."""

    @staticmethod
    def import_modules() -> None:
        import sglang.srt.entrypoints.engine  # noqa: F401

    def __init__(self, settings: Settings):
        os.environ["OPENMSA_SGLANG"] = "1" if settings.with_openmsa else "0"
        import sglang

        self._engine = sglang.Engine(
            model_path=settings.model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            page_size=PAGE,
            context_length=settings.max_context,
            chunked_prefill_size=settings.chunk,
            enable_mixed_chunk=settings.is_mixed,
            max_running_requests=settings.max_batch,
            cuda_graph_max_bs_decode=settings.max_batch,
            max_total_tokens=settings.max_tokens,
            disable_radix_cache=not settings.keeps_prompts,
            enable_multimodal=False,
            log_level="info",
            **settings.attention_options,
        )

    def serve(self, requests: list[Request]) -> Times:
        return self._engine.loop.run_until_complete(self._serve(requests))

    async def _serve(self, requests: list[Request]) -> Times:
        sent = [0.0] * len(requests)
        arrivals: list[list[float]] = [[] for _ in requests]
        prompts = [request.prompt() for request in requests]
        progress = asyncio.Event()
        begin = time.perf_counter()

        async def serve(place: int, request: Request) -> None:
            while not _may_send(request, arrivals[:place]):
                progress.clear()
                await progress.wait()
            sampling = {"temperature": 0.0, "max_new_tokens": request.num_new, "ignore_eos": True}
            sent[place] = time.perf_counter() - begin
            stream = await self._engine.async_generate(input_ids=prompts[place], sampling_params=sampling, stream=True)
            async for output in stream:
                num_tokens = output["meta_info"]["completion_tokens"]
                _count(arrivals[place], num_tokens, time.perf_counter() - begin)
                progress.set()

        await asyncio.gather(*(serve(place, request) for place, request in enumerate(requests)))
        return sent, arrivals


def _may_send(request: Request, earlier: list[list[float]]) -> bool:
    return not request.is_late or all(len(times) >= WARM_STEPS for times in earlier)


def _count(times: list[float], num_tokens: int, now: float) -> None:
    """All tokens that an answer brought came with it."""
    times += [now] * (num_tokens - len(times))


ENGINES: dict[str, type[Vllm] | type[Sglang]] = {"vllm": Vllm, "sglang": Sglang}
