"""A model of the catalogue as a plain value; the message is headrace.registry.v1.Model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from headrace.registry.v1 import registry_pb2
from libs.catalogue import options
from libs.catalogue.options import OpenVino, Remote, Simulation, Triton, TrtLlm, Vllm

DRAIN_S = 300.0
"""How long running works may go on when their copy is to be unloaded, where the catalogue says nothing."""
IDLE_S = 600.0
"""How long a copy above the least is kept that nobody needs, where the catalogue says nothing."""

_NOT_VERSIONED = (
    "replicas", "memory_bytes", "engines", "capabilities", "labels", "scaling", "pinned", "required_labels",
    "spread_label", "drain_timeout", "price", "adapter_memory_bytes",
)  # fmt: skip
"""What may change while a copy is loaded."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Copies follow demand."""

    min: int
    max: int
    works_per_copy: int = 0
    idle_s: float = IDLE_S


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost."""

    input: float
    cached_input: float
    output: float
    currency: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is to be loaded, and how much it may use. Field meanings: registry.proto."""

    name: str
    source: str
    context_tokens: int
    blocks: int
    block_tokens: int
    slots: int
    step_tokens: int
    memory_bytes: int = 0
    replicas: int = 1
    engines: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    simulation: Simulation = Simulation()
    revision: str = ""
    tokenizer: str = ""
    base: str = ""
    shares_prefix: bool = False
    scaling: Scaling | None = None
    pinned: bool = False
    required_labels: Mapping[str, str] = field(default_factory=dict)
    spread_label: str = ""
    drain_s: float = DRAIN_S
    price: Price | None = None
    adapter_memory_bytes: int = 0
    openvino: OpenVino = OpenVino()
    trtllm: TrtLlm = TrtLlm()
    triton: Triton = Triton()
    vllm: Vllm = Vllm()
    remote: Remote = Remote()
    version: str = "0"
    """Hexadecimal digits over everything that a loaded copy depends on."""
    pool: str = ""
    """"name@version" of what it runs in: of itself, or of its base. "" for an adapter without a base."""

    def __post_init__(self) -> None:
        if not self.pool and not self.base:
            object.__setattr__(self, "pool", f"{self.name}@{self.version}")

    @property
    def adapter(self) -> str:
        """ "name@version" of an adapter; "" for a base model."""
        return f"{self.name}@{self.version}" if self.base else ""

    @property
    def salt(self) -> str:
        """What keeps its prefixes apart from those of others in its pool."""
        return "" if self.shares_prefix else self.adapter

    @property
    def tokenizer_source(self) -> str:
        """Where its tokenizer is, in the form of `source`."""
        return self.tokenizer or self.source

    @property
    def copy_bytes(self) -> int:
        """Memory of one copy, with its room for adapters."""
        return self.memory_bytes + self.adapter_memory_bytes

    @classmethod
    def from_proto(cls, message: registry_pb2.Model) -> "ModelSpec":
        """Reads the message. An adapter lacks what its base says: see `resolve`."""
        scaling, price = message.scaling, message.price
        return cls(
            name=message.name,
            source=message.source,
            context_tokens=message.context_tokens,
            blocks=message.blocks,
            block_tokens=message.block_tokens,
            slots=message.slots,
            step_tokens=message.step_tokens,
            memory_bytes=message.memory_bytes,
            replicas=message.replicas,
            engines=tuple(message.engines),
            capabilities=tuple(message.capabilities),
            simulation=options.simulation(message.simulation),
            revision=message.revision,
            tokenizer=message.tokenizer,
            base=message.base,
            shares_prefix=message.shares_prefix,
            scaling=Scaling(
                scaling.min, max(scaling.max, 1), scaling.works_per_copy, options.seconds(scaling.idle, IDLE_S)
            )
            if message.HasField("scaling")
            else None,
            pinned=message.pinned,
            required_labels=dict(message.required_labels),
            spread_label=message.spread_label,
            drain_s=options.seconds(message.drain_timeout, DRAIN_S),
            price=Price(price.input, price.cached_input, price.output, price.currency)
            if message.HasField("price")
            else None,
            adapter_memory_bytes=message.adapter_memory_bytes,
            openvino=options.openvino(message.openvino),
            trtllm=options.trtllm(message.trtllm),
            triton=options.triton(message.triton),
            vllm=options.vllm(message.vllm),
            remote=options.remote(message.remote),
            version=version_of(message),
        )


def version_of(message: registry_pb2.Model) -> str:
    """8 hexadecimal digits over everything in a catalogue entry that a loaded copy depends on."""
    loaded = registry_pb2.Model()
    loaded.CopyFrom(message)
    for name in _NOT_VERSIONED:
        loaded.ClearField(name)  # type: ignore[arg-type]  # it wants literals
    return blake2b(loaded.SerializeToString(deterministic=True), digest_size=4).hexdigest()


def resolve(models: Mapping[str, registry_pb2.Model]) -> dict[str, ModelSpec]:
    """Every model of a catalogue that can be asked for: adapters with what their bases say.

    An adapter whose base is missing, or is itself an adapter, is left out.
    """
    specs = {name: ModelSpec.from_proto(message) for name, message in models.items()}
    bases = {name: spec for name, spec in specs.items() if not spec.base}
    return {
        name: spec if not spec.base else with_base(spec, bases[spec.base])
        for name, spec in specs.items()
        if not spec.base or spec.base in bases
    }


def with_base(adapter: ModelSpec, base: ModelSpec) -> ModelSpec:
    """An adapter with what its base says."""
    return replace(
        base,
        name=adapter.name,
        source=adapter.source,
        base=base.name,
        memory_bytes=adapter.memory_bytes,
        adapter_memory_bytes=0,
        capabilities=adapter.capabilities or base.capabilities,
        shares_prefix=adapter.shares_prefix,
        revision=adapter.revision,
        price=adapter.price or base.price,
        tokenizer=base.tokenizer_source,
        version=adapter.version,
        pool=base.pool,
    )


def model_of(pool: str) -> str:
    """The model of a pool or adapter, "name@version": names are bounded by the catalogue, versions are not, so
    metrics are labelled with this."""
    return pool.partition("@")[0]


def pin(pool: str, adapter: str) -> str:
    """What an answer that has begun is held to: this version of its model, and of its adapter if it has one."""
    return f"{pool}+{adapter}" if adapter else pool


def unpin(pinned: str) -> tuple[str, str]:
    """The pool, and the adapter or "", of a pin. A caller may have written it: it can name anything."""
    pool, _, adapter = pinned.partition("+")
    return pool, adapter


def salted(salt: str, tenant: str) -> str:
    """The salt of a work: that of its model (ModelSpec.salt), and behind it the tenant if that one is isolated, else
    "". Neither can have a "/" in it, so no two pairs make the same salt."""
    return f"{salt}/{tenant}" if tenant else salt


def unsalted(salt: str) -> tuple[str, str]:
    """Both parts of what `salted` made: the model's, and the isolated tenant or ""."""
    own, _, tenant = salt.partition("/")
    return own, tenant
