"""What a request is under that cites a contract. Pure."""

from dataclasses import dataclass

from libs.errors import ContractBroken, ContractUnknown, RequestInvalid, Violation
from libs.lane.work import Grammar
from services.admission.policy import Contract, Policy, Tenant
from services.admission.request import Request
from services.admission.validate import grammar_violations

MAX_REPAIRS = 5
GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Agreement:
    """A contract, and how it can be kept for one request."""

    contract: Contract
    constrainable: bool
    """Whether decoding can be held to the output schema."""
    repairs: int
    """How often an answer that is not valid is asked for again."""
    exact: bool
    """Whether the answer is tokens as the model made them: without tools it is, and may carry ids and
    log-probabilities. With tools it is made of parts of several answers."""

    @property
    def grammar(self) -> Grammar | None:
        """What decoding is held to, where it can be."""
        return Grammar("json_schema", self.contract.output_schema) if self.constrainable else None


def agree(request: Request, tenant: Tenant, policy: Policy) -> Agreement:
    """The contract that a request cites.

    Raises ContractUnknown, ContractBroken when the contract itself cannot be kept by anybody, and RequestInvalid with
    everything that goes against it.
    """
    contract = policy.contracts.get(request.contract)
    if contract is None or (contract.tenants and tenant.name not in contract.tenants):
        raise ContractUnknown(
            f"tenant {tenant.name} has no contract {request.contract!r}", metadata={"contract": request.contract}
        )
    schema = Grammar("json_schema", contract.output_schema)
    if contract.output_schema and (faults := grammar_violations(schema)):
        told = [Violation(f"contract/{contract.name}/output_schema", fault.description) for fault in faults]
        raise ContractBroken(f"the contract {contract.name} has an output schema that is none", violations=told)
    constrainable = bool(contract.output_schema) and _constrainable(request.model, tenant, policy)
    agreement = Agreement(
        contract,
        constrainable,
        repairs=min(contract.repairs, MAX_REPAIRS) if request.chat is not None else 0,
        exact=not contract.tools,
    )
    if faults := _faults(request, agreement):
        raise RequestInvalid.of(faults)
    return agreement


def _constrainable(model: str, tenant: Tenant, policy: Policy) -> bool:
    spec = policy.model(model)
    able = spec is not None and GRAMMAR in spec.capabilities
    return able and GRAMMAR not in policy.features_off and (not tenant.features or GRAMMAR in tenant.features)


def _faults(request: Request, agreement: Agreement) -> list[Violation]:
    contract, faults = agreement.contract, []
    if request.grammar is not None and (contract.output_schema or contract.tools):
        faults.append(Violation("grammar", f"the contract {contract.name} says what the answer looks like"))
    asked, most = request.sampling.max_tokens, contract.max_output_tokens
    if asked is not None and 0 < most < asked:
        faults.append(Violation("sampling.max_tokens", f"is {asked}; the contract {contract.name} allows {most}"))
    if not agreement.exact:
        if request.chat is None:
            faults.append(Violation("input", f"has to be a chat: the contract {contract.name} has tools"))
        if not request.text:
            faults.append(Violation("output_form", f"has to have text: the contract {contract.name} has tools"))
        if request.log_probs:
            faults.append(Violation("log_probs", f"are not to be had: the contract {contract.name} has tools"))
    if request.resumed and not (agreement.exact and bool(contract.output_schema) == agreement.constrainable):
        faults.append(Violation("resumed_token_ids", f"an answer under {contract.name} cannot be resumed"))
    return faults
