"""A kernel in PTX as C: what the stand-in of the CUDA driver runs in its place.

    python3 ptx.py MODULE.ptx KERNEL > kernel.c
    python3 ptx.py MODULE.ptx KERNEL --parameters    # their bytes, and r, w or rw where a
                                                     # pointer is read or written through

Threads of a block run one after the other, each up to the next barrier or exchange
between lanes. Registers are the bits that they hold, and every instruction says how it
reads them. An instruction that is not known is an error that shows it.
"""

import re
import sys

C_TYPES = {
    f"{kind}{bits}": f"{'int' if kind == 's' else 'uint'}{bits}_t"
    for kind in "sub"
    for bits in (8, 16, 32, 64)
}
C_TYPES |= {"f32": "float", "f64": "double", "pred": "uint8_t", "f16": "float", "bf16": "float"}
BITS = {"pred": 8, "f32": 32, "f64": 64, "f16": 16, "bf16": 16} | {
    t: int(t[1:]) for t in C_TYPES if t[1:].isdigit() and t[0] in "sub"
}
READ = {"f32": "F", "f64": "D", "f16": "H", "bf16": "B"}
ORDERED = {
    "eq": "==",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
OPPOSITE = {"lt": ">=", "le": ">", "gt": "<=", "ge": "<", "eq": "!="}
FUNCTIONS = {"ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "tanh": "tanh", "sqrt": "sqrt"}

PRELUDE = """
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static inline float F(uint32_t u) { float v; memcpy(&v, &u, 4); return v; }
static inline uint32_t FB(float v) { uint32_t u; memcpy(&u, &v, 4); return u; }
static inline double D(uint64_t u) { double v; memcpy(&v, &u, 8); return v; }
static inline uint64_t DB(double v) { uint64_t u; memcpy(&u, &v, 8); return u; }
static inline float B(uint16_t u) { return F((uint32_t)u << 16); }
static inline uint16_t BB(float v) {
    uint32_t u = FB(v);
    return v != v ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline float H(uint16_t u) { _Float16 v; memcpy(&v, &u, 2); return (float)v; }
static inline uint16_t HB(float v) { _Float16 h = (_Float16)v; uint16_t u; memcpy(&u, &h, 2); return u; }
static inline int64_t whole(double v, double least, double most) {
    return v != v ? 0 : v <= least ? (int64_t)least : v >= most ? (int64_t)most : (int64_t)v;
}
#define LOAD(type, address) ({ type v_; memcpy(&v_, (const void*)(uintptr_t)(address), sizeof v_); v_; })
#define STORE(type, address, value) ({ type v_ = (value); memcpy((void*)(uintptr_t)(address), &v_, sizeof v_); })
typedef struct { uint32_t x, y, z; } Dim;
"""


class Translator:
    def __init__(self, text, kernel):
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        self.text = re.sub(r"//[^\n]*", "", text)
        self.kernel = kernel
        self.scopes, self.registers, self.count = [{}], [("carry", 8)], 0
        self.symbols = {}  # name: C expression of its address
        self.params, self.size = {}, 0
        self.shared = self.local = 0
        self.resumes = 0
        self.globals = ""

    # What is declared.

    def declare(self, bits, name, count):
        self.count += 1
        for i in range(count) if count else [None]:
            known = name if i is None else f"{name}{i}"
            mine = "v" + re.sub(r"\W", "_", known) + (f"_{self.count}" if len(self.scopes) > 2 else "")
            self.scopes[-1][known] = (mine, bits)
            self.registers.append((mine, bits))

    def lookup(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def array(self, line, place):
        found = re.match(
            r"(?:\.extern |\.visible |\.weak )*\.(?:shared|local|global|const)\s+(?:\.align (\d+)\s+)?\.(\w+)\s+([\w$%.]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$",
            line,
            re.S,
        )
        if not found:
            raise SystemExit(f"a declaration that is not known: {line}")
        align, kind, name, count, values = found.groups()
        align, bytes_of = int(align or 1), BITS[kind] // 8 * int(count or (0 if "[" in line else 1))
        if place in ("global", "const"):
            # Floats as their bits: 0f3F800000.
            data = re.sub(r"\b0[fFdD]([0-9A-Fa-f]+)", r"0x\1", values or "0").strip("{} ")
            mine, n = "g_" + re.sub(r"\W", "_", name), max(1, int(count or 1))
            of = f"static uint{BITS[kind]}_t {mine}[{n}] __attribute__((aligned(16)))"
            self.globals += f"{of} = {{{data}}};\n"
            self.symbols[name] = f"(uint64_t)(uintptr_t){mine}"
        elif place == "shared":
            self.shared = -(-self.shared // align) * align
            self.symbols[name] = f"{self.shared}u"
            self.shared += bytes_of
        else:
            self.local = -(-self.local // align) * align
            self.symbols[name] = f"(uint64_t)(uintptr_t)(LOCAL + {self.local})"
            self.local += bytes_of

    # Operands.

    def bits_of(self, operand):
        special = re.match(r"%(n?tid|n?ctaid)\.([xyz])$", operand)
        if special:
            return (
                {"tid": "tid", "ntid": "block_dim", "ctaid": "block", "nctaid": "grid_dim"}[special[1]]
                + "."
                + special[2]
            )
        if operand == "%laneid":
            return "(tid.x & 31)"
        if operand in ("%SP", "%SPL") or operand.startswith("%") or self.lookup(operand):
            found = self.lookup(operand)
            if found is None:
                raise SystemExit(f"a register that is not known: {operand}")
            return self.place(found[0])
        if re.match(r"0[fF][0-9A-Fa-f]{8}$", operand):
            return f"0x{operand[2:]}u"
        if re.match(r"0[dD][0-9A-Fa-f]{16}$", operand):
            return f"0x{operand[2:]}ull"
        if re.match(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?$", operand):
            value = operand.rstrip("U")
            return (
                "((uint64_t)INT64_MIN)"
                if value == "-9223372036854775808"
                else f"({value}ll)"
                if "x" not in value.lower()
                else f"({value}ull)"
            )
        if operand in self.symbols:
            return self.symbols[operand]
        if operand in self.params:
            return f"(uint64_t)(uintptr_t)(P + {self.params[operand]})"
        raise SystemExit(f"an operand that is not known: {operand}")

    def place(self, register):
        return f"t->{register}" if self.stops else register

    def read(self, operand, kind):
        operand = operand.strip()
        negated = operand.startswith("!")
        bits = self.bits_of(operand.lstrip("!"))
        if kind == "pred":
            return f"({'!' if negated else ''}{bits})"
        if kind in READ:
            return f"{READ[kind]}({bits})"
        return f"(({C_TYPES[kind]}){bits})"

    def write(self, operand, kind, value):
        operand = operand.strip()
        if operand == "_":
            return ""
        if kind in READ:
            value = f"{READ[kind]}B({value})"
        elif kind != "pred":
            value = f"({C_TYPES[kind]})({value})"
        return f"{self.bits_of(operand)} = {value};"

    def address(self, operand, space):
        inner = operand.strip().strip("[]").strip()
        base, _, offset = re.match(r"([^+\s]+)\s*(\+)?\s*(-?\w+)?$", inner).groups()
        value = f"({self.bits_of(base)} + {offset or 0})"
        return f"(SHARED + (uint32_t){value})" if space == "shared" else value

    # Statements.

    def statements(self, body):
        statement, depth = "", 0
        for c in body:
            if c == "{" and not statement.strip():
                yield "{"
            elif c == "}" and depth == 0:
                yield "}"
            elif c == ";" and depth == 0:
                yield " ".join(statement.split())
                statement = ""
            elif c == ":" and re.fullmatch(r"\s*[\w$.%]+", statement):
                yield statement.strip() + ":"
                statement = ""
            else:
                depth += (c == "{") - (c == "}")
                statement += c

    def pause(self, kind):
        self.resumes += 1
        return f"t->at = {self.resumes}; return {kind}; R{self.resumes}:;"

    def instruction(self, text):
        name, _, rest = text.partition(" ")
        parts = name.split(".")
        op, mods = parts[0], parts[1:]
        operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s{\[][^,]*", rest)]
        types = [m for m in mods if m in C_TYPES]
        kind = types[-1] if types else None
        unknown = SystemExit(f"an instruction that is not known: {text}")
        r, w = self.read, self.write

        def result(value, of=None):
            return w(operands[0], of or kind, value)

        def two(symbol):
            return result(f"{r(operands[1], kind)} {symbol} {r(operands[2], kind)}")

        if op == "st" and "param" in mods:
            return ""  # An argument of a call.
        if op == "call" and "__assertfail" in rest:
            return f'fprintf(stderr, "an assertion in {self.kernel} failed\\n"); abort();'
        if op in ("ld", "ldu", "st"):
            space = next((m for m in mods if m in ("param", "global", "shared", "local", "const")), "generic")
            data, at = (operands[1], operands[0]) if op == "st" else (operands[0], operands[1])
            data = [d.strip() for d in data.strip("{}").split(",")]
            base, bits = self.address(at, space), BITS[kind]
            raw = {"f32": "uint32_t", "f64": "uint64_t"}.get(kind, C_TYPES[kind])
            if kind == "pred":
                raise unknown
            out = []
            for i, register in enumerate(data):
                place = f"{base} + {i * bits // 8}"
                if op == "st":
                    out.append(f"STORE({raw}, {place}, ({raw}){self.bits_of(register)});")
                elif register != "_":
                    out.append(f"{self.bits_of(register)} = LOAD({raw}, {place});")
            return " ".join(out)
        if op == "mov":
            to, of = operands
            if to.startswith("{"):
                names = [n.strip() for n in to.strip("{}").split(",")]
                each = BITS[kind] // len(names)
                cut = [
                    f"{self.bits_of(n)} = (uint{each}_t)(x_ >> {i * each});"
                    for i, n in enumerate(names)
                    if n != "_"
                ]
                return f"{{ uint{BITS[kind]}_t x_ = {self.bits_of(of)}; {' '.join(cut)} }}"
            if of.startswith("{"):
                names = [n.strip() for n in of.strip("{}").split(",")]
                each = BITS[kind] // len(names)
                joined = " | ".join(
                    f"(uint{BITS[kind]}_t)(uint{each}_t){self.bits_of(n)} << {i * each}"
                    for i, n in enumerate(names)
                )
                return f"{self.bits_of(to)} = {joined};"
            return f"{self.bits_of(to)} = {self.bits_of(of)};"
        if op == "cvta":
            if "shared" in mods:
                of = self.bits_of(operands[1])
                return f"{self.bits_of(operands[0])} = " + (
                    f"{of} - (uint64_t)(uintptr_t)SHARED;"
                    if "to" in mods
                    else f"(uint64_t)(uintptr_t)SHARED + {of};"
                )
            return f"{self.bits_of(operands[0])} = {self.bits_of(operands[1])};"
        if "bf16x2" in mods and op in ("add", "sub", "mul"):
            a, b = (r(o, "u32") for o in operands[1:3])
            symbol = {"add": "+", "sub": "-", "mul": "*"}[op]
            low, high = (
                f"BB(B((uint16_t)({a} >> {at})) {symbol} B((uint16_t)({b} >> {at})))" for at in (0, 16)
            )
            return self.write(operands[0], "u32", f"(uint32_t){high} << 16 | {low}")
        if op == "bfi":
            a, b, at, n = (
                r(operands[1], kind),
                r(operands[2], kind),
                r(operands[3], "u32"),
                r(operands[4], "u32"),
            )
            one = f"({C_TYPES[kind]})1"
            mask = f"(({n} >= {BITS[kind]} ? 0 : {one} << {n}) - 1)"
            return result(
                f"{n} == 0 || {at} >= {BITS[kind]} ? {b} : ({b} & ~({mask} << {at})) | ({a} & {mask}) << {at}"
            )
        if op in ("addc", "subc", "madc") or op in ("add", "sub", "mad") and "cc" in mods:
            if BITS[kind] != 32 or op in ("sub", "subc"):
                raise unknown
            carry = self.place("carry")
            value = f"(uint64_t){r(operands[1], 'u32')}"
            if op in ("mad", "madc"):
                value = f"({value} * {r(operands[2], 'u32')})"
                value = f"({value} >> 32)" if "hi" in mods else f"(uint64_t)(uint32_t){value}"
            last = r(operands[3] if op in ("mad", "madc") else operands[2], "u32")
            sum_of = f"{value} + {last}" + (f" + {carry}" if op.endswith("c") else "")
            kept = f"{carry} = s_ >> 32; " if "cc" in mods else ""
            return f"{{ uint64_t s_ = {sum_of}; {kept}{self.write(operands[0], 'u32', 's_')} }}"
        if op in ("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max"):
            floating = kind in READ
            if op in ("mul", "mad") and not floating:
                a, b = r(operands[1], kind), r(operands[2], kind)
                bits = BITS[kind]
                wide = f"{kind[0]}{2 * bits}" if bits < 64 else None
                big = C_TYPES[wide] if wide else ("__int128" if kind[0] == "s" else "unsigned __int128")
                if "wide" in mods:
                    value, of = f"({big}){a} * ({big}){b}", wide
                elif "hi" in mods:
                    value, of = f"({C_TYPES[kind]})((({big}){a} * ({big}){b}) >> {bits})", kind
                else:
                    value, of = f"(uint{bits}_t){a} * (uint{bits}_t){b}", kind
                if op == "mad":
                    value = f"(uint{BITS[of]}_t)({value}) + (uint{BITS[of]}_t){r(operands[3], of)}"
                return result(value, of)
            if op in ("fma", "mad"):
                function = "fma" if kind == "f64" else "fmaf"
                value = f"{function}({r(operands[1], kind)}, {r(operands[2], kind)}, {r(operands[3], kind)})"
            elif op in ("min", "max"):
                a, b = r(operands[1], kind), r(operands[2], kind)
                sign = "<" if op == "min" else ">"
                if floating:
                    value = f"f{op}{'' if kind == 'f64' else 'f'}({a}, {b})"
                    if "NaN" in mods:
                        value = f"({a} != {a} || {b} != {b}) ? NAN : {value}"
                else:
                    value = f"{a} {sign} {b} ? {a} : {b}"
            else:
                symbol = {"add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%"}[op]
                as_kind = f"u{BITS[kind]}" if op in ("add", "sub") and not floating else kind
                value = f"{r(operands[1], as_kind)} {symbol} {r(operands[2], as_kind)}"
            if "sat" in mods:
                value = f"fminf(fmaxf({value}, 0.0f), 1.0f)"
            return result(value)
        if op in ("and", "or", "xor"):
            return two({"and": "&", "or": "|", "xor": "^"}[op])
        if op == "not":
            return result(f"{'!' if kind == 'pred' else '~'}{r(operands[1], kind)}")
        if op == "neg":
            return result(f"-{r(operands[1], kind)}")
        if op == "abs":
            a = r(operands[1], kind)
            return result(f"fabs({a})" if kind in READ else f"{a} < 0 ? -{a} : {a}")
        if op in ("shl", "shr"):
            a, by, bits = r(operands[1], kind), r(operands[2], "u32"), BITS[kind]
            if op == "shl":
                return result(f"{by} >= {bits} ? 0 : {a} << {by}")
            return result(f"{by} >= {bits} ? {f'{a} >> {bits - 1}' if kind[0] == 's' else '0'} : {a} >> {by}")
        if op == "shf":
            low, high, by = (r(o, "u32") for o in operands[1:4])
            by = f"({by} & 31)" if "wrap" in mods else f"({by} > 32 ? 32 : {by})"
            both = f"((uint64_t){high} << 32 | {low})"
            return w(operands[0], "u32", f"{both} >> {by}" if "r" in mods else f"({both} << {by}) >> 32")
        if op == "prmt":
            a, b, s = (r(o, "u32") for o in operands[1:4])
            byte = f"(uint32_t)(uint8_t)((((uint64_t){b} << 32 | {a}) >> (8 * ({s} >> SHIFT & 7))))"
            signed = "(({s} >> SHIFT & 8) ? (uint32_t)(uint8_t)((int8_t)({byte}) >> 7) : {byte})".replace(
                "{s}", s
            ).replace("{byte}", byte)
            return w(
                operands[0],
                "u32",
                " | ".join(signed.replace("SHIFT", str(4 * i)) + f" << {8 * i}" for i in range(4)),
            )
        if op == "bfe" and kind[0] == "u":
            a, at, n = r(operands[1], kind), r(operands[2], "u32"), r(operands[3], "u32")
            return result(
                f"{n} == 0 || {at} >= {BITS[kind]} ? 0 : ({a} >> {at}) & ({n} >= {BITS[kind]} ? ~0ull : (1ull << {n}) - 1)"
            )
        if op == "lop3":
            a, b, c = (r(o, "u32") for o in operands[1:4])
            table = int(operands[4], 0)
            terms = [
                f"({'' if i & 4 else '~'}{a} & {'' if i & 2 else '~'}{b} & {'' if i & 1 else '~'}{c})"
                for i in range(8)
                if table >> i & 1
            ]
            return w(operands[0], "u32", " | ".join(terms) or "0")
        if op in ("popc", "clz"):
            a, bits = r(operands[1], kind), BITS[kind]
            function = f"__builtin_{op if op == 'clz' else 'popcount'}{'ll' if bits == 64 else ''}"
            return w(operands[0], "u32", f"{a} ? {function}({a}) : {bits if op == 'clz' else 0}")
        if op == "selp":
            return f"{self.bits_of(operands[0])} = {r(operands[3], 'pred')} ? {self.bits_of(operands[1])} : {self.bits_of(operands[2])};"
        if op == "setp":
            a, b, compare = r(operands[1], kind), r(operands[2], kind), mods[0]
            if compare in ("num", "nan"):
                value = f"({a} != {a} || {b} != {b})" if compare == "nan" else f"({a} == {a} && {b} == {b})"
            elif compare == "ne":
                value = f"({a} < {b} || {a} > {b})" if kind in READ else f"({a} != {b})"
            elif compare == "neu":
                value = f"({a} != {b})"
            elif compare[-1] == "u" and compare != "u":
                value = f"(!({a} {OPPOSITE[compare[:-1]]} {b}))"
                if compare == "equ":
                    value = f"(!({a} < {b} || {a} > {b}))"
            else:
                value = f"({a} {ORDERED[compare]} {b})"
            joined = next((m for m in mods[1:] if m in ("and", "or", "xor")), None)
            if joined:
                value = f"({value} {dict(zip(('and', 'or', 'xor'), '&|^'))[joined]} {r(operands[3], 'pred')})"
            names = operands[0].split("|")
            if len(names) > 1:
                raise unknown
            return w(names[0], "pred", value)
        if op == "cvt":
            if "bf16x2" in mods or "f16x2" in mods:
                to = "BB" if "bf16x2" in mods else "HB"
                return f"{self.bits_of(operands[0])} = (uint32_t){to}({r(operands[1], 'f32')}) << 16 | {to}({r(operands[2], 'f32')});"
            to, of = types[-2], types[-1]
            value = r(operands[1], of)
            if to in READ and of in READ:
                for mode, function in (("rni", "rint"), ("rmi", "floor"), ("rpi", "ceil"), ("rzi", "trunc")):
                    if mode in mods:
                        value = f"{function}{'' if of == 'f64' else 'f'}({value})"
                if "sat" in mods:
                    value = f"fminf(fmaxf({value}, 0.0f), 1.0f)"
            elif of in READ:
                function = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[
                    next(m for m in mods if m.endswith("i"))
                ]
                bits = BITS[to]
                if to == "u64":
                    value = f"({value} > 0 ? (uint64_t){function}({value}) : 0)"
                else:
                    least, most = (
                        (f"-0x1p{bits - 1}", f"0x1p{bits - 1} - 1")
                        if to[0] == "s"
                        else ("0", f"0x1p{bits} - 1")
                    )
                    value = f"whole({function}({value}), {least}, {most})"
            return w(operands[0], to, value)
        if op in FUNCTIONS:
            return result(f"{FUNCTIONS[op]}{'' if kind == 'f64' else 'f'}({r(operands[1], kind)})")
        if op == "rcp":
            return result(f"1 / {r(operands[1], kind)}")
        if op == "rsqrt":
            return result(f"1 / sqrt{'' if kind == 'f64' else 'f'}({r(operands[1], kind)})")
        if op == "copysign":
            return result(f"copysign({r(operands[2], kind)}, {r(operands[1], kind)})")
        if op == "testp":
            a = r(operands[1], kind)
            return w(
                operands[0],
                "pred",
                {
                    "infinite": f"isinf({a}) != 0",
                    "finite": f"isfinite({a}) != 0",
                    "notanumber": f"isnan({a}) != 0",
                }[mods[0]],
            )
        if op in ("bar", "barrier"):
            return self.pause(1)
        if op == "shfl":
            mode = next(m for m in mods if m in ("up", "down", "bfly", "idx"))
            lane, by = "(tid.x & 31)", self.read(operands[2], "u32")
            other = {"up": f"{lane} - {by}", "down": f"{lane} + {by}", "bfly": f"{lane} ^ {by}", "idx": by}[
                mode
            ]
            to = operands[0].split("|")
            inside = self.write(to[1], "pred", f"o_ == ({other})") if len(to) > 1 else ""
            return (
                f"t->given[t->phase & 1] = {self.bits_of(operands[1])}; {self.pause(2)} "
                f"{{ uint32_t o_ = {other}; if (o_ > 31) o_ = {lane}; if ((t - {lane} + o_)->phase < t->phase) o_ = {lane}; "
                f"{self.bits_of(to[0])} = (t - {lane} + o_)->given[t->phase & 1]; {inside} t->phase++; }}"
            )
        if op == "bra":
            return f"goto L{re.sub(r'[^0-9A-Za-z_]', '_', operands[0])};"
        if op in ("ret", "exit"):
            return "return 0;"
        if op == "trap":
            return f'fprintf(stderr, "trap in {self.kernel}\\n"); abort();'
        raise unknown

    def module_arrays(self):
        # A function's own are indented.
        for line in re.findall(
            r"^((?:\.extern |\.visible |\.weak )*\.(?:global|const|shared)\s[^;]*);", self.text, re.M
        ):
            name = re.search(r"([\w$]+)\s*(?:\[|=|$)", line)[1]
            if not re.search(re.escape(name) + r"\b", self.body):
                continue
            self.array(" ".join(line.split()), re.search(r"\.(global|const|shared)", line)[1])

    def parse(self):
        start = self.text.find(f".entry {self.kernel}(")
        if start < 0:
            raise SystemExit(f"no kernel {self.kernel}")
        found = re.compile(r"\.entry [\w$]+\((.*?)\)([^{]*)\{(.*?)\n\}", re.S).match(self.text, start)
        self.body = found[3]
        self.stops = bool(re.search(r"\b(bar|barrier|shfl)\.", self.body))
        self.sizes = []
        for line in found[1].split(","):
            if not line.strip():
                continue
            align, kind, name, count = re.search(
                r"\.param\s+(?:\.align (\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align \d+\s+)?)?([\w$]+)(?:\[(\d+)\])?\s*$",
                line,
            ).groups()
            bytes_of = BITS[kind] // 8 * int(count or 1)
            align = int(align or bytes_of)
            self.size = -(-self.size // align) * align
            self.params[name] = self.size
            self.sizes.append((self.size, bytes_of))
            self.size += bytes_of

    def parameters(self):
        """Bytes of every parameter, and how memory is used that it points to, or that what
        is there points to."""
        self.parse()
        behind = {name: {name} for name in self.params}
        used = {name: set() for name in self.params}
        # Twice: a loop may use what it computes further down.
        for statement in 2 * list(self.statements(self.body)):
            text = re.sub(r"^@!?[\w%$]+\s+", "", statement)
            op, _, rest = text.partition(" ")
            names = re.findall(r"[%\w$]+", rest)
            if text.startswith(".") or not names:
                continue
            if op.startswith("st."):
                sources, targets = names[:1], []
            else:
                sources, targets = names[1:], names[:1]
                if rest.startswith("{"):
                    targets = re.findall(r"[%\w$]+", rest[: rest.index("}")])
            reached = set().union(*(behind.get(name, set()) for name in sources))
            if op.split(".")[0] in ("ld", "st") and ".global" in op:
                for name in reached:
                    used[name].add("w" if op.startswith("st") else "r")
                if not re.search(r"[bsu]64$", op):
                    continue
            for name in targets:
                behind[name] = behind.get(name, set()) | reached
        return "\n".join(
            f"{bytes_of} {''.join(sorted(used[name])) or '-'}"
            for name, (_, bytes_of) in zip(self.params, self.sizes)
        )

    def translate(self):
        self.parse()
        self.module_arrays()
        lines = []
        self.scopes.append({})
        for statement in self.statements(self.body):
            if statement == "{":
                self.scopes.append({})
            elif statement == "}":
                self.scopes.pop()
            elif statement.endswith(":"):
                lines.append(f"L{re.sub(r'[^0-9A-Za-z_]', '_', statement[:-1])}:;")
            elif statement.startswith(".reg"):
                _, kind, names = statement.split(None, 2)
                for name in names.split(","):
                    name, count = re.match(r"([\w$%]+)(?:<(\d+)>)?$", name.strip()).groups()
                    self.declare(BITS[kind[1:]], name, int(count) if count else 0)
            elif statement.startswith((".shared", ".local")):
                self.array(statement, statement.split()[0][1:])
            elif statement.startswith("."):
                continue
            else:
                guard, text = re.match(r"(?:@(!?[\w%$]+)\s+)?(.*)$", statement).groups()
                code = self.instruction(text)
                lines.append(f"if ({self.read(guard, 'pred')}) {{ {code} }}" if guard else code)
        declared = [f"uint{bits}_t {name};" for name, bits in dict(self.registers).items()]
        out = [PRELUDE, self.globals, "typedef struct { uint32_t at, phase; uint64_t given[2];"]
        out += [
            *(declared if self.stops else []),
            f"char local[{self.local or 1}] __attribute__((aligned(16))); }} Thread;",
        ]
        out.append("#define LOCAL (t->local)")
        out.append(
            "static int run(Thread* t, const char* P, char* SHARED, Dim tid, Dim block, Dim block_dim, Dim grid_dim) {"
        )
        if self.stops:
            cases = " ".join(f"case {i}: goto R{i};" for i in range(1, self.resumes + 1))
            out.append(f"switch (t->at) {{ {cases} }}")
        else:
            out += declared
        out += [*lines, "return 0;", "}"]
        copies = " ".join(f"memcpy(P + {at}, params[{i}], {n});" for i, (at, n) in enumerate(self.sizes))
        out.append(
            LAUNCH.replace(
                "PARAMS", f"char P[{self.size or 1}] __attribute__((aligned(16))); {copies}"
            ).replace("STATIC", str(self.shared))
        )
        return "\n".join(out)


# A warp that waits for an exchange goes on when all its lanes that are left wait, a block
# at a barrier when all its threads that are left do.
LAUNCH = """
void launch(Dim grid_dim, Dim block_dim, uint32_t dynamic, void** params) {
    PARAMS
    uint64_t blocks = (uint64_t)grid_dim.x * grid_dim.y * grid_dim.z;
    uint32_t threads = block_dim.x * block_dim.y * block_dim.z, warps = (threads + 31) / 32;
    int reverse = getenv("STANDIN_REVERSE") != NULL;
    #pragma omp parallel
    {
        Thread* all = malloc(threads * sizeof(Thread));
        char* shared = aligned_alloc(16, (STATIC + dynamic + 31) / 16 * 16);
        uint8_t* state = malloc(threads);
        #pragma omp for schedule(static)
        for (uint64_t b = 0; b < blocks; b++) {
            Dim block = {b % grid_dim.x, b / grid_dim.x % grid_dim.y, b / grid_dim.x / grid_dim.y};
            memset(shared, 0xff, STATIC + dynamic);
            memset(state, 3, threads);
            for (uint32_t i = 0; i < threads; i++) all[i].at = all[i].phase = 0;
            for (uint32_t left = threads; left > 0;) {
                uint32_t ran = 0, waiting = 0;
                left = 0;
                for (uint32_t warp = 0; warp < warps; warp++) {
                    uint32_t first = 32 * (reverse ? warps - 1 - warp : warp), last = first + 32 < threads ? first + 32 : threads, live = 0, exchanging = 0;
                    for (uint32_t k = first; k < last; k++) {
                        uint32_t i = reverse ? first + last - 1 - k : k;
                        if (state[i] == 3) {
                            Dim tid = {i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y};
                            state[i] = run(all + i, P, shared, tid, block, block_dim, grid_dim);
                            ran++;
                        }
                        live += state[i] != 0;
                        exchanging += state[i] == 2;
                        waiting += state[i] == 1;
                    }
                    if (live > 0 && exchanging == live)
                        for (uint32_t i = first; i < last; i++) if (state[i]) state[i] = 3;
                    left += live;
                }
                if (left > 0 && waiting == left) {
                    for (uint32_t i = 0; i < threads; i++) if (state[i]) state[i] = 3;
                } else if (left > 0 && ran == 0) {
                    fprintf(stderr, "threads of a block wait for each other\\n");
                    abort();
                }
            }
        }
        free(all); free(shared); free(state);
    }
}
"""

if __name__ == "__main__":
    with open(sys.argv[1]) as module:
        kernel = Translator(module.read(), sys.argv[2])
    print(kernel.parameters() if "--parameters" in sys.argv else kernel.translate())
