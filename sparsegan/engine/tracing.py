"""torch.fx tracing that also runs the model on an example."""

from __future__ import annotations

import operator
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..calls import Call
from ..forks import TRACING
from ..nn.layer import SparseConv
from ..nn.modulated import ModulatedConv
from ..signals import IMAGE, SIGNAL

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d)


def close(ours: Any, theirs: Any, inputs: Sequence[Tensor] = ()) -> bool:
    """Whether two results of one model are equal within the rounding errors of different orders of summation.

    `inputs`: of the model. Where numbers of their size cancel to 0, both results are rounding errors of such numbers.
    """
    if isinstance(theirs, Tensor):
        if not (theirs.is_floating_point() or theirs.is_complex()):
            return torch.equal(ours, theirs)
        scale = theirs.abs().max().item() if theirs.numel() else 0.0
        # A GPU may round the factors of float32 products to TF32, which has as many digits as float16.
        rounded = torch.float16 if theirs.is_cuda and theirs.dtype == torch.float32 else theirs.dtype
        eps = torch.finfo(rounded).eps
        tolerance = max(1e-3, 16 * eps)
        numbers = (one[one.isfinite()] for one in inputs if one.is_floating_point())
        largest = max((one.abs().max().item() for one in numbers if one.numel()), default=0.0)
        least = min(tolerance, 1024 * eps) * largest
        return torch.allclose(ours, theirs, rtol=tolerance, atol=max(tolerance * scale, least))
    leaves, others = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    if len(others) == 1 and others[0] is theirs:
        return bool(ours == theirs)
    return len(leaves) == len(others) and all(
        close(one, other, inputs) for one, other in zip(leaves, others, strict=True)
    )


class Tracer(fx.Tracer):
    """Traces a model and runs it on an example at the same time, so that the forward may read shapes.

    ``node.meta["value"]`` is the result of a node in the example. A tensor is stored as a tensor on the meta device, so
    its values live only as long as the forward holds them. ``node.meta["corner"]`` is the first element of each channel
    of an image or a signal, ``[N, C]``. ``node.meta["view"]`` says whether the result uses the memory of an argument.

    The graph has a placeholder for each tensor of the call, in order. The other arguments of the call are constants of
    the graph. The output of the graph is the list of the leaves of the model's output; :attr:`out_structure` is the
    structure of the model's output.

    The model and the arguments may be on the meta device. Shapes are then found without computing anything, and a
    forward that needs values or the device raises an error.

    Args:
        root: the model.
        call: the arguments of the model.
        leaves: names of modules whose forward is not traced.

    :attr:`failed` names the innermost module whose forward raised, "" for the model's own forward.
    """

    def __init__(self, root: nn.Module, call: Call, leaves: Collection[str] = ()) -> None:
        # By default, torch.fx wraps `math` for the whole process, and torch.compile then refuses `math.prod`.
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # the annotation allows no empty tuple
        self.model, self.call, self.arguments, self.leaves = root, call, iter(call.tensors), leaves
        self.meta = any(tensor.is_meta for tensor in call.tensors)
        # A buffer on the meta device has no values, so all that is computed from it must be nodes too.
        self.proxy_buffer_attributes = self.meta
        self.running = False  # while a node is computed on the example, nothing is traced
        self.thread = threading.get_ident()
        self.out_structure: pytree.TreeSpec | None = None
        self.failed: str | None = None

    def trace(self) -> fx.Graph:  # type: ignore[override]
        """The graph. Only one trace runs at a time, because torch.fx patches ``nn.Module.__call__`` for the process."""
        with TRACING, _RandomAsNodes(self):
            try:
                return super().trace(self.model)
            except Exception:
                self.failed = self.failed or ""
                raise

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """One placeholder per tensor, for any signature and any structure of the arguments."""
        proxies = [
            self.create_proxy("placeholder", f"input_{index}", (), {}) for index in range(len(self.call.tensors))
        ]

        def flat(root: nn.Module, *tensors: Any) -> list[Any]:
            args, kwargs = self.call.arguments(tensors)
            outputs, self.out_structure = pytree.tree_flatten(root_fn(root, *args, **kwargs))
            return outputs

        return flat, [self.root, *proxies]

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Proxy:
        """The proxy of torch.fx, which also holds the value of its node in the example."""
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
        args, kwargs = fx.node.map_aggregate((args, kwargs), _value)
        self.running = True
        value: Any
        if kind == "placeholder":
            value = next(self.arguments)
        elif kind == "get_attr":
            value = operator.attrgetter(target)(self.model)
        elif kind == "call_module":
            value = self.model.get_submodule(target)(*args, **kwargs)
        elif kind == "call_method":
            value = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            if self.meta and target in FACTORIES:
                kwargs = {**kwargs, "device": "meta"}
            value = target(*args, **kwargs) if kind == "call_function" else None
        self.running = False
        assert isinstance(proxy, _Shaped)
        proxy.value = value
        proxy.node.meta["view"] = bool(_memory(value) & _memory((args, kwargs)))
        proxy.node.meta["value"] = fx.node.map_aggregate(value, _without_values)
        if isinstance(value, Tensor) and value.dim() in (SIGNAL, IMAGE) and value.numel():
            first = value[:, :, 0] if value.dim() == SIGNAL else value[:, :, 0, 0]
            proxy.node.meta["corner"] = first.clone()  # a later node may change the value in place
        return proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node. Besides the leaves of torch.fx, these are subclasses of norms, sparse
        layers, modulated convolutions, and modules with hooks, so that the hooks run in every call."""
        modulated = type(m).forward is ModulatedConv.forward
        own = isinstance(m, (*NORMS, SparseConv)) or modulated or module_qualified_name in self.leaves or has_hooks(m)
        return own or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Traces the call of a module, as torch.fx does. Outside the trace, calls the forward."""
        if self._elsewhere():
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for an attribute of a module, as in torch.fx. Outside the trace, the attribute itself."""
        return attr_val if self._elsewhere() else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Raises an error: only a forward that runs can decide a branch on values."""
        raise fx.proxy.TraceError(f"a branch depends on the values of {obj.node.name}")

    def _elsewhere(self) -> bool:
        """Whether a module is used outside the trace: a node is computed on the example, or another thread calls it."""
        return self.running or threading.get_ident() != self.thread

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows the shape of its value."""
        return _Shaped(node, self)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


#: Functions without tensor arguments that make a tensor of random numbers or an uninitialized tensor.
FACTORIES = (torch.randn, torch.rand, torch.randint, torch.randperm, torch.normal, torch.empty)

#: Functions and methods that draw random numbers, by name.
_RANDOM = (
    *("randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "binomial"),
    *("randn_like", "rand_like", "randint_like", "rrelu", "gumbel_softmax", "feature_dropout", "alpha_dropout"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"),
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
)


def is_random(name: str) -> bool:
    """Whether a function or method of this name draws random numbers or returns uninitialized memory."""
    return name in _RANDOM or name in ("empty", "empty_like", "new_empty")


class _RandomAsNodes(TorchFunctionMode):
    """A mode in which the functions of :data:`FACTORIES`, called by a traced forward, become nodes.

    Their numbers are therefore drawn anew in every call. torch.fx alone records only functions of traced tensors. The
    result of any other function would be computed once and become a constant.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer = self.tracer
        if not tracer.running and threading.get_ident() == tracer.thread:
            traced = any(isinstance(one, fx.Proxy) for one in pytree.tree_leaves((args, kwargs)))
            name = getattr(func, "__name__", "")
            if not traced and func in FACTORIES:
                return tracer.create_proxy("call_function", func, args, kwargs)
            if not traced and name in _RANDOM:
                raise RuntimeError(f"{name} draws into a tensor that is not computed from the inputs")
        return func(*args, **kwargs)


class _Shaped(fx.Proxy):
    """A proxy that answers questions about shape and structure from the value of its node in the example."""

    value: Any

    shape = property(lambda self: _value(self).shape)
    ndim = property(lambda self: _value(self).ndim)
    dtype = property(lambda self: _value(self).dtype)
    is_cuda = property(lambda self: self.device.type == "cuda")

    @property
    def device(self) -> torch.device:
        device = _value(self).device
        if device.type == "meta":
            raise RuntimeError("the forward looks at the device, which is not the model's own while shapes are found")
        return device

    def dim(self) -> int:
        return _value(self).dim()

    def size(self, dim: int | None = None) -> Any:
        return _value(self).size() if dim is None else _value(self).size(dim)

    def numel(self) -> int:
        return _value(self).numel()

    def is_floating_point(self) -> bool:
        return _value(self).is_floating_point()

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        """The elements of a tuple, a list or a tensor, each as a node. A program is compiled for one shape, so their
        number is known."""
        if isinstance(self.value, tuple | list | Tensor):
            return iter([self._element(index) for index in range(len(self.value))])
        return super().__iter__()

    def __getattr__(self, name: str) -> Any:
        """A node for a field of a named tuple, such as ``torch.max(x, 1).values``, and for a view such as ``x.mT``."""
        value = self.__dict__.get("value")
        fields = getattr(type(value), "__match_args__", ()) if isinstance(value, tuple) else ()
        if name in fields:
            return self._element(fields.index(name))
        if isinstance(value, Tensor) and name in ("T", "mT", "H", "mH", "real", "data"):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _element(self, index: int) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def _number(self) -> Any:
        raise RuntimeError(f"the forward makes a Python number of the values of {self.node.name}")

    __float__ = __int__ = _number

    def _in_place(self, method: str, other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            return NotImplemented
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    # torch.fx would record `t += y` as `t = t + y`. Other readers of the old tensor would then miss the change.
    __iadd__ = partialmethod(_in_place, "add_")
    __isub__ = partialmethod(_in_place, "sub_")
    __imul__ = partialmethod(_in_place, "mul_")
    __itruediv__ = partialmethod(_in_place, "div_")
    __ifloordiv__ = partialmethod(_in_place, "floor_divide_")
    __imod__ = partialmethod(_in_place, "remainder_")
    __ipow__ = partialmethod(_in_place, "pow_")
    __iand__ = partialmethod(_in_place, "bitwise_and_")
    __ior__ = partialmethod(_in_place, "bitwise_or_")
    __ixor__ = partialmethod(_in_place, "bitwise_xor_")


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, _Shaped) else argument


def _memory(values: Any) -> set[int]:
    """The storages of the tensors among some values, by identity: storages on the meta device have no address."""
    found: set[int] = set()

    def add(one: Any) -> Any:
        if isinstance(one, Tensor):
            found.add(one.untyped_storage()._cdata)
        return one

    fx.node.map_aggregate(values, add)
    return found


def _without_values(one: Any) -> Any:
    return torch.empty_like(one, device="meta") if isinstance(one, Tensor) else one
