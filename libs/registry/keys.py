"""Where things lie in etcd. Pure.

/headrace/v1/
├── services/{service}/{instance}     ServiceInstance, leased
├── executors/{id}                    Executor, leased
├── models/{name}                     Model
├── changes/models/{name}             ModelChange, the last one of each, leased: gone after a day
├── changes/policies                  who changed which rules last
├── placements/{executor}/{pool}      Placement, written by the leader of placement
├── unplaced/{model}                  Unplaced, written by the leader of placement
├── failures/{executor}/{pool}        LoadFailure, written by the leader of placement, leased
├── demand/{instance}                 Demand, written by each batcher, leased
├── limits/{instance}                 Spending, written by each admission process, leased
├── approvals/{id}                    Approval, leased: gone after ten minutes
├── policies/
│   ├── tenants/{name}                Tenant
│   ├── tiers/{interactive|async}     TierPolicy
│   ├── routes/{alias}                Route
│   ├── scheduling/{model|default}    Scheduling
│   ├── pins/{name}                   Pin
│   ├── breakers/{model|default}      Breaker
│   ├── contracts/{name}              Contract
│   ├── tools/{name}                  Tool
│   ├── issuers/{name}                TokenIssuer
│   └── switches/{kind}/{name}        Switch
└── leaders/{role}                    Leader, leased

A name is one segment of a key: not empty, without a slash, printable, without blanks. The functions raise
ValueError for any other.
"""

ROOT = "/headrace/v1/"
SERVICES = ROOT + "services/"
EXECUTORS = ROOT + "executors/"
MODELS = ROOT + "models/"
CHANGES = ROOT + "changes/models/"
POLICY_CHANGE = ROOT + "changes/policies"
PLACEMENTS = ROOT + "placements/"
UNPLACED = ROOT + "unplaced/"
FAILURES = ROOT + "failures/"
DEMAND = ROOT + "demand/"
LIMITS = ROOT + "limits/"
APPROVALS = ROOT + "approvals/"
POLICIES = ROOT + "policies/"
TENANTS = POLICIES + "tenants/"
TIERS = POLICIES + "tiers/"
ROUTES = POLICIES + "routes/"
SCHEDULING = POLICIES + "scheduling/"
PINS = POLICIES + "pins/"
BREAKERS = POLICIES + "breakers/"
CONTRACTS = POLICIES + "contracts/"
TOOLS = POLICIES + "tools/"
ISSUERS = POLICIES + "issuers/"
SWITCHES = POLICIES + "switches/"
LEADERS = ROOT + "leaders/"


def service(service: str, instance: str) -> str:
    """The key of a process of a stage."""
    return SERVICES + _path(service, instance)


def services(service: str) -> str:
    """The prefix of all processes of one stage."""
    return SERVICES + _path(service) + "/"


def executor(id: str) -> str:  # noqa: A002  (the field's own term)
    """The key of an executor's process."""
    return EXECUTORS + _path(id)


def model(name: str) -> str:
    """The key of a model of the catalogue."""
    return MODELS + _path(name)


def change(model: str) -> str:
    """The key of the last change of a model."""
    return CHANGES + _path(model)


def placement(executor: str, pool: str) -> str:
    """The key of a copy: of a pool, "name@version", on an executor."""
    return PLACEMENTS + _path(executor, pool)


def placements(executor: str) -> str:
    """The prefix of everything placed on one executor."""
    return PLACEMENTS + _path(executor) + "/"


def unplaced(model: str) -> str:
    """The key of what keeps a model from having its copies."""
    return UNPLACED + _path(model)


def failure(executor: str, pool: str) -> str:
    """The key of a copy that could not be loaded."""
    return FAILURES + _path(executor, pool)


def demand(instance: str) -> str:
    """The key of what a batcher is asked for."""
    return DEMAND + _path(instance)


def limits(instance: str) -> str:
    """The key of what an admission process spends of limits that hold for all."""
    return LIMITS + _path(instance)


def approval(id: str) -> str:  # noqa: A002  (the field's own term)
    """The key of a person's decision on a tool call."""
    return APPROVALS + _path(id)


def tenant(name: str) -> str:
    """The key of a tenant."""
    return TENANTS + _path(name)


def tier(name: str) -> str:
    """The key of a tier's rules; `name` is "interactive" or "async"."""
    return TIERS + _path(name)


def route(alias: str) -> str:
    """The key of a model's second name."""
    return ROUTES + _path(alias)


def scheduling(name: str) -> str:
    """The key of how works of a model are dispatched; "default" for all that have none of their own."""
    return SCHEDULING + _path(name)


def pin(name: str) -> str:
    """The key of a prefix that is kept."""
    return PINS + _path(name)


def breaker(name: str) -> str:
    """The key of a model's breaker; "default" for all that have none of their own."""
    return BREAKERS + _path(name)


def contract(name: str) -> str:
    """The key of a contract."""
    return CONTRACTS + _path(name)


def tool(name: str) -> str:
    """The key of a tool."""
    return TOOLS + _path(name)


def issuer(name: str) -> str:
    """The key of an issuer of tokens."""
    return ISSUERS + _path(name)


def switch(kind: str, name: str) -> str:
    """The key of a kill switch; `kind` is "model", "tenant", "tool" or "feature"."""
    return SWITCHES + _path(kind, name)


def leader(role: str) -> str:
    """The key that the holder of a role has."""
    return LEADERS + _path(role)


def _path(*names: str) -> str:
    for name in names:
        if not name or not name.isprintable() or "/" in name or " " in name:
            raise ValueError(f"{name!r} cannot be a segment of a key")
    return "/".join(names)
