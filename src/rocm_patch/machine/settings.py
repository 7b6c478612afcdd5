"""Values that somebody set, and where: each place where a variable or a module option can come from.

Only names that our tables know are read, and files are parsed, never run. What is not plain text to us (a value made
by a command, a line inside an `if`) is left out rather than guessed.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from rocm_patch.knowledge import Knowledge
from rocm_patch.machine.user import User
from rocm_patch.model import Known, Setting, SettingKind, Unknown
from rocm_patch.root import Root

OURS = ("zz-rocm-patch.sh", "zz-rocm-patch.conf", "90-rocm-patch.conf", "80-rocm-patch.conf")
"""Names of our files, whatever the folder. A menu entry bears the application's name: it is known by its first line."""
OUR_LIBRARIES = "/usr/local/lib/rocm-patch/"
"""Where the preload kind puts them: the file that names them is not ours, the word is."""
_OUR_HEAD = "# Settings of rocm-patch "

_SHELL_FILES = (".profile", ".bash_profile", ".bash_login", ".bashrc", ".bash_aliases", ".zshenv", ".zprofile", ".zshrc", ".xprofile", ".xsessionrc")
_SYSTEM_SHELL_FILES = ("etc/profile", "etc/bash.bashrc", "etc/bashrc", "etc/zsh/zshenv", "etc/zshenv", "etc/zsh/zprofile", "etc/zsh/zshrc")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_OURS_UNSET = re.compile(r"""if \[ "\$\{(\w+)-\}" = '([^']*)' \]; then unset \1; fi""")

# A later place overrides an earlier one for whoever logs in at a shell.
_LOGIN_ORDER = ("environment-file", "pam-env", "environment.d", "profile", "shell")
# Graphical sessions, services and launchers started from them read no shell file.
_SESSION_ORDER = _LOGIN_ORDER[:3]


def collect(root: Root, user: User, knowledge: Knowledge, environment: Mapping[str, str]) -> tuple[tuple[Setting, ...], list[Unknown]]:
    """All settings in reading order, each marked whether it is in force; and files that could not be read."""
    reader = _Reader(root, knowledge)
    reader.environment_places(user.home, environment)
    reader.scoped_places(user.home)
    reader.module_places()
    reader.preload()
    return tuple(_mark(reader.found)), reader.unread


class _Reader:
    def __init__(self, root: Root, knowledge: Knowledge) -> None:
        self.root, self.knowledge = root, knowledge
        self.found: list[Setting] = []
        self.unread: list[Unknown] = []
        self.ours: set[str] = set()

    # -- places

    def environment_places(self, home: str, environment: Mapping[str, str]) -> None:
        self._pairs("etc/environment", "environment-file", "login")
        self._pairs("etc/security/pam_env.conf", "pam-env", "login", pam=True)
        self._pairs(f"{home}/.pam_environment", "pam-env", "login", pam=True)
        for folder in ("usr/lib/environment.d", "etc/environment.d", "run/environment.d", f"{home}/.config/environment.d"):
            for name in self.root.list(folder):
                if name.endswith(".conf"):
                    self._pairs(f"{folder}/{name}", "environment.d", "session")
        for path in _SYSTEM_SHELL_FILES[:1]:
            self._shell(path, "profile", "login")
        for name in sorted(self.root.list("etc/profile.d")):  # the shell's own order, not ours
            if name.endswith(".sh"):
                self._shell(f"etc/profile.d/{name}", "profile", "login")
        for path in _SYSTEM_SHELL_FILES[1:]:  # read by each new shell, so after any drop-in for logins
            self._shell(path, "shell", "login")
        for name in _SHELL_FILES:
            self._shell(f"{home}/{name}", "shell", "login")
        for path in (
            f"{home}/.config/fish/config.fish",
            *(f"{home}/.config/fish/conf.d/{name}" for name in self.root.list(f"{home}/.config/fish/conf.d")),
        ):
            self._shell(path, "fish", "application fish")
        for name, value in sorted(environment.items()):
            self._add(name, value, "process", "environment", 0, "process")

    def scoped_places(self, home: str) -> None:
        self._pairs("etc/systemd/system.conf", "systemd", "service (all)", key="DefaultEnvironment")
        self._pairs("etc/systemd/user.conf", "systemd", "service (all)", key="DefaultEnvironment")
        for folder in ("etc/systemd/system.conf.d", "etc/systemd/user.conf.d", f"{home}/.config/systemd/user.conf.d"):
            for name in self.root.list(folder):
                if name.endswith(".conf"):
                    self._pairs(f"{folder}/{name}", "systemd", "service (all)", key="DefaultEnvironment")
        for folder in ("etc/systemd/system", "etc/systemd/user", f"{home}/.config/systemd/user"):
            self._units(folder)
        for folder in ("usr/share/applications", f"{home}/.local/share/applications", f"{home}/.config/autostart", "etc/xdg/autostart"):
            for name in self.root.list(folder):
                if name.endswith(".desktop"):
                    self._desktop(f"{folder}/{name}", name.removesuffix(".desktop"))
        self._launchers(home)
        for base in ("miniconda3", "anaconda3", "miniforge3", "mambaforge"):
            for name in ("", *(f"envs/{name}/" for name in self.root.list(f"{home}/{base}/envs"))):
                folder = f"{home}/{base}/{name}etc/conda/activate.d"
                for script in self.root.list(folder):
                    self._shell(f"{folder}/{script}", "conda", f"application {name.strip('/') or base}")

    def module_places(self) -> None:
        for folder in ("usr/lib/modprobe.d", "lib/modprobe.d", "etc/modprobe.d", "run/modprobe.d"):
            for name in self.root.list(folder):
                if name.endswith(".conf"):
                    self._modprobe(f"{folder}/{name}")
        line = self.root.text("proc/cmdline")
        if isinstance(line, Known) and line.value:
            for word in line.value.split():
                name, _, value = word.partition("=")
                self._add(name.replace("-", "_"), value, "cmdline", "proc/cmdline", 1, "kernel")
        for name in self.knowledge.settings:
            if name.startswith("amdgpu."):
                path = f"sys/module/amdgpu/parameters/{name.partition('.')[2]}"
                answer = self.root.word(path)
                if isinstance(answer, Known) and answer.value is not None:
                    self._add(name, answer.value, "loaded", path, 1, "kernel")

    def preload(self) -> None:
        for number, line in self._lines("etc/ld.so.preload"):
            for word in line.partition("#")[0].replace(":", " ").split():
                self._add("ld.so.preload", word, "preload", "etc/ld.so.preload", number, "every program")

    # -- formats

    def _pairs(self, path: str, origin: str, reach: str, *, pam: bool = False, key: str = "") -> None:
        for number, line in self._lines(path):
            text = line.strip()
            if not text or text[0] in "#;[":
                continue
            if key:
                if text.startswith(f"{key}="):
                    for name, value in _words(text.partition("=")[2]):
                        self._add(name, value, origin, path, number, reach)
                continue
            if pam and not re.match(r"[A-Za-z_]\w*=", text):
                match = re.match(r"(\w+)\s+(?:.*?)(?:DEFAULT|OVERRIDE)=(\"[^\"]*\"|\S*)", text)
                if match:
                    self._add(match.group(1), match.group(2).strip('"'), origin, path, number, reach)
                continue
            if origin in ("environment-file", "pam-env"):  # pam_env ends a line at a number sign
                text = text.partition("#")[0].strip()
            name, equals, value = text.removeprefix("export ").partition("=")
            if equals and _NAME.fullmatch(name.strip()):
                self._add(name.strip(), value.strip().strip("\"'"), origin, path, number, reach)

    def _shell(self, path: str, origin: str, reach: str) -> None:
        """Assignments of a shell file. What stands in a function or a here-document sets nothing by itself.

        What stands inside a condition may or may not hold: an assignment there is shown all the same, since a
        launcher's `if Navi 1` branch is exactly what sets the override; an unset there is not believed.
        """
        depth, until = 0, ""
        for number, line in self._lines(path):
            text = line.strip()
            if until:
                until = "" if text == until else until
                continue
            here = re.search(r"<<-?\s*[\"']?(\w+)", text)
            if here:
                until = here.group(1)
                continue
            if re.fullmatch(r"(function\s+)?[\w-]+\s*(\(\))?\s*\{", text) and ("(" in text or text.startswith("function")):
                until = "}"
                continue
            ours = _OURS_UNSET.fullmatch(text)
            if ours:
                self._add(ours.group(1), None, origin, path, number, reach, replaces=ours.group(2))
                continue
            if re.match(r"(if|for|while|until|case)\b", text) and not re.search(r"\b(fi|done|esac)\b\s*$", text):
                depth += 1
            if re.match(r"(fi|done|esac)\b", text):
                depth = max(0, depth - 1)
            for words in _commands(text):
                self._command_of_shell(words, origin, path, number, reach, sure=not depth)

    def _command_of_shell(self, words: list[str], origin: str, path: str, number: int, reach: str, *, sure: bool) -> None:
        while words and words[0] in ("then", "else", "do", "{", "!"):
            words = words[1:]
        if not words:
            return
        first, rest = words[0], words[1:]
        options = [word for word in rest if word.startswith("-")]
        names = [word for word in rest if not word.startswith("-")]
        if first == "unset" or (first == "set" and any("e" in option.lstrip("-")[:5] and "x" not in option for option in options)):
            for name in names if sure else ():
                self._add(name, None, origin, path, number, reach)
        elif first in ("export", "declare", "typeset"):
            for name, value in _pairs_of(names):
                self._add(name, value, origin, path, number, reach)
        elif first in ("set", "setenv"):
            if len(names) == 2 and _NAME.fullmatch(names[0]) and (first == "setenv" or any("x" in option for option in options)):
                self._add(names[0], names[1], origin, path, number, reach)
        elif all(_PAIR.match(word) for word in words) or (origin == "launcher" and _PAIR.match(first)):
            # Before a command it is for that command only; a launcher's command is the program itself.
            for name, value in _pairs_of(words):
                if origin == "launcher" or name.startswith(("HSA_", "MIOPEN_", "HIP_", "PYTORCH_", "ROCR_", "AMD_")):
                    self._add(name, value, origin, path, number, reach)

    def _units(self, folder: str) -> None:
        for name in self.root.list(folder):
            files = [f"{folder}/{name}"] if name.endswith(".service") else []
            if name.endswith(".service.d"):
                files = [f"{folder}/{name}/{part}" for part in self.root.list(f"{folder}/{name}") if part.endswith(".conf")]
            unit = re.sub(r"\.service(\.d)?$", "", name)
            for path in files:
                for number, line in self._lines(path):
                    key, equals, rest = line.strip().partition("=")
                    if equals and key == "Environment":
                        for variable, value in _words(rest):
                            self._add(variable, value, "systemd", path, number, f"service {unit}")
                    elif equals and key == "EnvironmentFile":
                        self._pairs(rest.strip().lstrip("-"), "systemd", f"service {unit}")
                    elif equals and key.startswith("Exec"):
                        self._command(rest, "systemd", path, number, f"service {unit}")

    def _desktop(self, path: str, name: str) -> None:
        for number, line in self._lines(path):
            if number == 1 and line.startswith(_OUR_HEAD):
                self.ours.add(path)
            if line.startswith("Exec="):
                self._command(line[5:], "desktop", path, number, f"application {name}")

    def _command(self, text: str, origin: str, path: str, number: int, reach: str) -> None:
        if re.search(r"\benv\s", text) or re.search(r"\b[A-Z_]+=", text):
            for name, value in _words(re.sub(r"[\"']", " ", text)):
                self._add(name, value, origin, path, number, reach)

    def _launchers(self, home: str) -> None:
        folders = [home, *(f"{home}/{name}" for name in self.root.list(home) if not name.startswith("."))]
        seen: set[str] = set()
        for folder in folders:
            for row in self.knowledge.launchers:
                for pattern in row.paths:
                    for path in _matching(self.root, folder, pattern):
                        if path not in seen:
                            seen.add(path)
                            self._shell(path, "launcher", f"application {row.name}")

    def _modprobe(self, path: str) -> None:
        for number, line in self._lines(path):
            words = line.partition("#")[0].split()
            if len(words) >= 3 and words[0] == "options":
                for word in words[2:]:
                    name, _, value = word.partition("=")
                    self._add(f"{words[1]}.{name}", value, "modprobe", path, number, "boot")

    # -- gathering

    def _lines(self, path: str) -> Iterator[tuple[int, str]]:
        answer = self.root.text(path)
        if isinstance(answer, Unknown):
            self.unread.append(answer)
            return
        yield from enumerate((answer.value or "").splitlines(), 1)

    def _add(self, name: str, value: str | None, origin: str, path: str, line: int, reach: str, replaces: str = "") -> None:
        row = self.knowledge.settings.get(name)
        if row is None or (value is not None and ("$" in value or "`" in value)):
            return
        kind: SettingKind = row.kind
        shown = path if path == "environment" else "/" + path.lstrip("/")
        ours = any(shown.endswith(f"/{own}") for own in OURS) or path in self.ours
        ours = ours or (origin == "preload" and (value or "").startswith(OUR_LIBRARIES))
        if replaces and not any(item.name == name and item.value == replaces for item in self.found):
            return  # our own guard against a value that nobody sets any more
        self.found.append(Setting(name, value, kind, origin, shown, line, reach, True, ours))


def _matching(root: Root, folder: str, pattern: str) -> Iterator[str]:
    head, _, last = pattern.rpartition("/")
    base = f"{folder}/{head}" if head else folder
    for name in root.list(base):
        if fnmatch.fnmatchcase(name, last):
            yield f"{base}/{name}"


def _words(text: str) -> Iterator[tuple[str, str]]:
    """NAME=VALUE words of a shell-like line, quotes removed; nothing where the quoting is broken."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return
    for word in words:
        name, equals, value = word.rstrip(";").partition("=")
        if equals and _NAME.fullmatch(name):
            yield name, value


def _commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a line as words, quotes removed; nothing where the quoting is broken."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    command: list[str] = []
    try:
        for word in lexer:
            if word and set(word) <= set(";&|"):
                yield command
                command = []
            else:
                command.append(word)
    except ValueError:
        return
    yield command


def _pairs_of(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        match = _PAIR.match(word)
        if not match:
            return
        name, value = match.group(1), word[match.end() :]
        default = re.fullmatch(rf"\$\{{{name}:?-([^$`}}]*)\}}", value)
        yield name, default.group(1) if default else value


def _mark(found: Iterable[Setting]) -> Iterator[Setting]:
    """Mark what is overridden: the last word in a login wins; a loaded module's own value decides for the kernel.

    The running process is judged by itself: its value is in force now, the winning file's at the next login.
    """
    settings = list(found)
    winners: set[int] = set()
    for order in (_LOGIN_ORDER, _SESSION_ORDER):
        last: dict[str, int] = {}
        for index, setting in sorted(enumerate(settings), key=lambda pair: _rank(pair[1])):
            if setting.kind == "environment" and setting.origin in order:
                last[setting.name] = index
        winners.update(last.values())
    loaded = {setting.name: setting.value for setting in settings if setting.origin == "loaded"}
    for index, setting in enumerate(settings):
        in_force = setting.value is not None
        if setting.kind == "environment" and setting.origin in _LOGIN_ORDER:
            in_force = in_force and index in winners
        elif setting.kind == "module" and setting.origin != "loaded":
            in_force = loaded.get(setting.name, setting.value) == setting.value
        yield replace(setting, in_force=in_force)


def _rank(setting: Setting) -> int:
    return _LOGIN_ORDER.index(setting.origin) if setting.origin in _LOGIN_ORDER else -1
