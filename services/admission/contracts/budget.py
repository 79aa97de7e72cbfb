"""What an answer under a contract may still use. Pure."""

import dataclasses

from msgspec.structs import replace

from libs.errors import ContractBroken, Violation
from services.admission.generation import Finish
from services.admission.policy import Contract, Tenant
from services.admission.request import Request, SamplingRequest


class Budget:
    """Steps and tokens of one answer: limits of the contract, of the tenant and of the request, over all steps."""

    def __init__(self, contract: Contract, tenant: Tenant, request: Request) -> None:
        asked = request.sampling.max_tokens
        limits = [limit for limit in (contract.max_output_tokens, tenant.max_output_tokens, asked) if limit]
        self._tokens = min(limits, default=None)
        self._contract = contract
        self._tenant = tenant
        self._finishes: list[Finish] = []

    @property
    def step(self) -> int:
        """The number of the step that is under way, from 1."""
        return len(self._finishes) + 1

    @property
    def last(self) -> bool:
        """Whether no step may follow the one under way."""
        return self.step >= self._contract.max_steps

    def spend(self, finish: Finish) -> None:
        """A step is over."""
        self._finishes.append(finish)

    def may_go_on(self) -> bool:
        """Whether there is another step to be had."""
        return self.step <= self._contract.max_steps and self._left() != 0

    def check(self) -> None:
        """Raises ContractBroken when no step is to be had."""
        if self.step > self._contract.max_steps:
            most = self._contract.max_steps
            self._broken("max_steps", f"the answer is not done after {most} steps")
        if self._left() == 0:
            self._broken("max_output_tokens", f"the answer is not done after {self._used} tokens")

    def tenant(self) -> Tenant:
        """The tenant, with what is left to this answer as its limits: they are checked where those are."""
        prompt = [limit for limit in (self._contract.max_prompt_tokens, self._tenant.max_prompt_tokens) if limit]
        left = self._left()
        return dataclasses.replace(
            self._tenant,
            max_prompt_tokens=min(prompt, default=0),
            max_output_tokens=self._tenant.max_output_tokens if left is None else left,
        )

    def sampling(self, asked: SamplingRequest) -> SamplingRequest:
        """What the step under way asks for. The first asks for what its caller said, so that too much is refused;
        later ones for what is left, or less where the context has less room."""
        return asked if self.step == 1 else replace(asked, max_tokens=None)

    def whole(self, total_s: float) -> Finish:
        """How the whole answer ended: as its last step, with the usage of all."""
        steps, last = self._finishes, self._finishes[-1]
        return replace(
            last,
            prompt_tokens=sum(step.prompt_tokens for step in steps),
            cached_tokens=sum(step.cached_tokens for step in steps),
            output_tokens=self._used,
            queued_s=sum(step.queued_s for step in steps),
            first_token_s=steps[0].first_token_s,
            total_s=total_s,
            degradation=max((step.degradation for step in steps), key=lambda degradation: degradation.level),
            tried=tuple(dict.fromkeys(model for step in steps for model in step.tried)),
        )

    @property
    def _used(self) -> int:
        return sum(finish.output_tokens for finish in self._finishes)

    def _left(self) -> int | None:
        return None if self._tokens is None else max(self._tokens - self._used, 0)

    def _broken(self, limit: str, why: str) -> None:
        fault = Violation(f"contract/{self._contract.name}/{limit}", why)
        raise ContractBroken(f"{fault.subject}: {why}", violations=[fault])
