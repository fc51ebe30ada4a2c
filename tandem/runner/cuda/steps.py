"""Steps on a GPU: decode by replayed graphs, everything else launch by launch.

A decode step is one copy to the device, one replay, one copy of the tokens back, and one wait for it. Before it waits,
the host writes the next step as far as it can be foreseen: same sequences, one token further. The tokens themselves go
through the host, because whether a sequence goes on after its token is the step loop's decision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.draw_tokens import DrawTokens
from kernels.gpu.sampling_rows import SamplingRows
from tandem.model.batch import SequenceRows
from tandem.runner.cuda.buckets import Bucket, bucket_for
from tandem.runner.cuda.graphs import GraphBackend, StreamShare
from tandem.runner.cuda.host_draws import host_draws, sample_on_host
from tandem.runner.cuda.inputs import StaticInputs, StaticOutputs, make_inputs, make_outputs
from tandem.runner.cuda.stage import DecodeRow, Stage, decode_row
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, SampledToken, sample
from tandem.runner.steps import TokenCopy

SampleRows = Callable[[torch.Tensor, SamplingRows], torch.Tensor]
"""`kernels.gpu.sample_tokens.sample_tokens`."""


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """The model over the segments, and how its tokens are drawn. `runner_for`: with kernels for so many SMs."""

    runner_for: Callable[[int], ModelRunner]
    device: torch.device
    block_size: int
    vocab_size: int
    sample_rows: SampleRows
    draw_tokens: DrawTokens


class CudaSteps:
    """A `StepRunner`. Owns static tensors and graphs; all of them are made in the thread that computes."""

    def __init__(self, model: DeviceModel, graphs: GraphBackend) -> None:
        self._model = model
        self._graphs = graphs
        self._runners: dict[int, ModelRunner] = {}  # by number of SMs
        self._places: dict[Bucket, _Place] = {}
        self._outputs: dict[int, StaticOutputs] = {}  # by number of rows
        self._replays: dict[tuple[StreamShare, Bucket], Callable[[], None]] = {}

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        """See `StepRunner`. What comes after it waits for it, on the device."""
        self._runner(self._graphs.share().num_sms).copy_tokens(copies)

    @torch.inference_mode()
    def execute(self, rows: Sequence[SequenceRows], draws: Sequence[Draw | None]) -> list[SampledToken | None]:
        """See `StepRunner`. The first step of a size on a stream runs launch by launch and is then captured."""
        if rows and all(len(sequence.token_ids) == 1 for sequence in rows):
            return self._decode(rows, draws)
        return self._run_rows(rows, draws)

    def _decode(self, rows: Sequence[SequenceRows], draws: Sequence[Draw | None]) -> list[SampledToken | None]:
        staged = [decode_row(sequence, draw) for sequence, draw in zip(rows, draws, strict=True)]
        longest = max(row.position // self._model.block_size + 1 for row in staged)
        bucket = bucket_for(len(rows), longest)
        place, outputs = self._place(bucket), self._outputs_of(bucket.num_rows)
        stage = place.next_stage()
        stage.write([sequence.token_ids[0] for sequence in rows], staged)
        place.inputs.buffer.copy_(stage.buffer, non_blocking=True)
        self._launch(bucket, place.inputs, outputs)
        outputs.token_ids_on_host.copy_(outputs.token_ids, non_blocking=True)
        place.foresee([row.next for row in staged])
        self._graphs.wait()
        token_ids = outputs.token_ids_on_host[: len(rows)].tolist()
        tokens = [
            None if draw is None else SampledToken(token_id, None)
            for token_id, draw in zip(token_ids, draws, strict=True)
        ]
        return _with_host_draws(tokens, outputs.logits, draws)

    def _launch(self, bucket: Bucket, inputs: StaticInputs, outputs: StaticOutputs) -> None:
        share = self._graphs.share()
        replay = self._replays.get((share, bucket))
        if replay is not None:
            replay()
            return
        runner = self._runner(share.num_sms)

        def compute() -> None:
            outputs.logits.copy_(runner.forward(inputs.batch))
            outputs.token_ids.copy_(self._model.sample_rows(outputs.logits, inputs.sampling))

        compute()
        self._replays[share, bucket] = self._graphs.capture(compute)

    def _run_rows(self, rows: Sequence[SequenceRows], draws: Sequence[Draw | None]) -> list[SampledToken | None]:
        """Chunks of prompts, and whatever rows are beside them.

        Waits also when nothing is drawn: when a step has ended nothing writes to its sequences' blocks any more.
        """
        logits = self._runner(self._graphs.share().num_sms).execute(rows)
        tokens: list[SampledToken | None] = [None] * len(rows)
        asked = [(index, draw) for index, draw in enumerate(draws) if draw is not None and not host_draws(draw)]
        if asked:
            indices = torch.tensor([index for index, _ in asked], device=logits.device)
            drawn = sample(logits[indices], [draw for _, draw in asked], self._model.draw_tokens)
            for (index, _), token in zip(asked, drawn, strict=True):
                tokens[index] = token
        self._graphs.wait()
        return _with_host_draws(tokens, logits, draws)

    def _runner(self, num_sms: int) -> ModelRunner:
        if num_sms not in self._runners:
            self._runners[num_sms] = self._model.runner_for(num_sms)
        return self._runners[num_sms]

    def _place(self, bucket: Bucket) -> "_Place":
        if bucket not in self._places:
            model, device = self._model, self._model.device
            inputs = make_inputs(bucket, model.block_size, model.vocab_size, device)
            stages = (Stage(bucket, model.block_size, device), Stage(bucket, model.block_size, device))
            self._places[bucket] = _Place(inputs, stages)
        return self._places[bucket]

    def _outputs_of(self, num_rows: int) -> StaticOutputs:
        if num_rows not in self._outputs:
            model = self._model
            self._outputs[num_rows] = make_outputs(num_rows, model.vocab_size, model.device)
        return self._outputs[num_rows]


class _Place:
    """A bucket's tensors on the device, and the two host buffers that are copied there in turns."""

    def __init__(self, inputs: StaticInputs, stages: tuple[Stage, Stage]) -> None:
        self.inputs = inputs
        self._stages = stages
        self._turn = 0

    def next_stage(self) -> Stage:
        """The one that is not in use by the step before."""
        self._turn = 1 - self._turn
        return self._stages[self._turn]

    def foresee(self, rows: Sequence[DecodeRow]) -> None:
        """Into the stage of the next step of this size."""
        self._stages[1 - self._turn].foresee(rows)


def _with_host_draws(
    tokens: list[SampledToken | None], logits: torch.Tensor, draws: Sequence[Draw | None]
) -> list[SampledToken | None]:
    """`tokens`, and those that the host must draw from `logits`."""
    asked = [(index, draw) for index, draw in enumerate(draws) if draw is not None and host_draws(draw)]
    if asked:
        drawn = sample_on_host(logits, [index for index, _ in asked], [draw for _, draw in asked])
        for (index, _), token in zip(asked, drawn, strict=True):
            tokens[index] = token
    return tokens
