"""Text of small GPU programs in LLVM IR: a program, and a body of lines with numbered values."""

from __future__ import annotations

from dataclasses import dataclass

TEN = ("gfx1010", "gfx1011", "gfx1012", "gfx1030")
DOT = ("gfx1011", "gfx1012", "gfx1030")  # LLVM aborts the process where an intrinsic has no instruction
ONLY_10_3 = ("gfx1030",)
LEVELS = (0, 1, 2, 3)

# What the optimiser finds out about most kernels that use nothing but their arguments: the argument pointer then comes first.
LEAN = " ".join(
    f'"amdgpu-no-{name}"'
    for name in ("dispatch-ptr", "queue-ptr", "dispatch-id", "implicitarg-ptr", "workgroup-id-y", "workgroup-id-z", "workitem-id-y", "workitem-id-z")
)


@dataclass(frozen=True)
class Program:
    """One module. `features` are LLVM feature strings that it needs, `chips` those it can be compiled for."""

    name: str
    text: str
    features: str = ""
    chips: tuple[str, ...] = TEN
    levels: tuple[int, ...] = LEVELS


class Body:
    """Lines of a function, with numbered values."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def value(self, expression: str) -> str:
        """A new value; returns its name."""
        self.count += 1
        self.lines.append(f"  %t{self.count} = {expression}")
        return f"%t{self.count}"

    def do(self, line: str) -> None:
        """An instruction without a result, or a label."""
        self.lines.append(line if line.endswith(":") else f"  {line}")

    def element(self, pointer: str, index: str, kind: str = "float", space: int = 1) -> str:
        """The address of one element."""
        return self.value(f"getelementptr inbounds {kind}, ptr{f' addrspace({space})' if space else ''} {pointer}, i32 {index}")

    def load(self, pointer: str, kind: str = "float", space: int = 1, align: int = 4) -> str:
        """A load; `space` 0 is flat."""
        return self.value(f"load {kind}, ptr{f' addrspace({space})' if space else ''} {pointer}, align {align}")

    def store(self, value: str, pointer: str, kind: str = "float", space: int = 1, align: int = 4, volatile: bool = False) -> None:
        """A store. A volatile one waits for its end, which is a remedy by itself."""
        self.do(f"store{' volatile' if volatile else ''} {kind} {value}, ptr{f' addrspace({space})' if space else ''} {pointer}, align {align}")

    def lane(self) -> str:
        """This work item's number."""
        return self.value("call i32 @llvm.amdgcn.workitem.id.x()")

    def group(self) -> str:
        """This work group's number: uniform."""
        return self.value("call i32 @llvm.amdgcn.workgroup.id.x()")


ARGUMENTS = "ptr addrspace(1) %in, ptr addrspace(1) %out, i32 %n, i32 %m, float %f"
DECLARED = """declare i32 @llvm.amdgcn.workitem.id.x()
declare i32 @llvm.amdgcn.workgroup.id.x()
declare void @llvm.amdgcn.s.barrier()
declare void @llvm.amdgcn.s.sleep(i32 immarg)
declare i32 @llvm.amdgcn.readfirstlane(i32)
declare i32 @llvm.amdgcn.readlane(i32, i32)
declare float @llvm.fma.f32(float, float, float)
"""


def module(
    body: Body, arguments: str = ARGUMENTS, extra: str = "", attributes: str = LEAN, convention: str = "amdgpu_kernel", name: str = "k"
) -> str:
    """A module of one function around the body, which lacks only its `ret`."""
    lines = "\n".join(body.lines)
    function = f"define {convention} void @{name}({arguments}) #0 {{\nentry:\n{lines}\n  ret void\n}}\n"
    return (
        f'target triple = "amdgcn-amd-amdhsa"\n{DECLARED}{extra}{function}attributes #0 = {{ {attributes} "amdgpu-flat-work-group-size"="1,256" }}\n'
    )


def arithmetic(body: Body, value: str, count: int, kind: str) -> str:
    """`count` dependent operations of about one instruction each on a value of type float ('float', 'mad') or i32 ('integer')."""
    for step in range(count):
        if kind == "float":
            value = body.value(f"call float @llvm.fma.f32(float {value}, float %f, float {value})")
        elif kind == "mad":
            product = body.value(f"fmul float {value}, %f")
            value = body.value(f"fadd float {product}, {value}")
        else:
            value = body.value(f"{('add', 'xor', 'mul', 'sub')[step % 4]} i32 {value}, %m")
    return value


SPECIAL = """declare i32 @llvm.amdgcn.permlane16.i32(i32, i32, i32, i32, i1 immarg, i1 immarg)
declare i32 @llvm.amdgcn.permlanex16.i32(i32, i32, i32, i32, i1 immarg, i1 immarg)
declare float @llvm.amdgcn.fma.legacy(float, float, float)
declare void @llvm.amdgcn.kill(i1)
declare <4 x float> @llvm.amdgcn.raw.buffer.load.v4f32(<4 x i32>, i32, i32, i32 immarg)
declare void @llvm.amdgcn.raw.buffer.store.f32(float, <4 x i32>, i32, i32, i32 immarg)
declare i32 @llvm.amdgcn.ds.bpermute(i32, i32)
declare i64 @llvm.readcyclecounter()
"""


def conditional(body: Body, condition: str, inside: list[str]) -> None:
    """`if (condition) inside`."""
    body.do(f"br i1 {condition}, label %then, label %join")
    body.do("then:")
    for line in inside:
        body.do(line)
    body.do("br label %join")
    body.do("join:")


def plain_name(kind: str) -> str:
    """A type's name without what a test's name should not hold: '<4 x i32>' -> '4xi32'."""
    return kind.translate({ord(character): None for character in "<> "})
