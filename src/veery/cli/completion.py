"""completion: the bash completion script, generated from the catalogue."""

from __future__ import annotations

from argparse import Namespace

from veery.cli.catalogue import Verb, entries
from veery.cli.parser import Parser
from veery.cli.session import Session

_VERBS_OF_DOMAINS = (
    "block-attach block-detach block-list console delete destroy domid list mem-set migrate network-attach "
    "network-detach network-list pause reboot rename save shutdown unpause uptime vcpu-list"
)
_BASH = """# bash completion for veery
_veery() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb= options=() index
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${{COMP_WORDS[index]}} in
            --node|--settings|--lab) options+=("${{COMP_WORDS[index]}}" "${{COMP_WORDS[index + 1]}}"); ((index++)) ;;
            -*) ;;
            *) verb=${{COMP_WORDS[index]}}; break ;;
        esac
    done
    case $verb in
        '') COMPREPLY=($(compgen -W '{verbs} --node --settings --lab --json' -- "$word")) ;;
{groups}
        {domains})
            local domains=$(veery "${{options[@]}}" list 2>/dev/null | awk 'NR > 1 {{print $1}}')
            COMPREPLY=($(compgen -W "$domains" -- "$word")) ;;
        *) COMPREPLY=() ;;
    esac
}}
complete -o bashdefault -o default -F _veery veery"""


def script() -> str:
    """Return the bash script."""
    groups: dict[str, list[str]] = {}
    for name in entries():
        first, _, second = name.partition(" ")
        groups.setdefault(first, [])
        if second:
            groups[first].append(second)
    lines = [
        f"        {name}) COMPREPLY=($(compgen -W '{' '.join(inner)}' -- \"$word\")) ;;"
        for name, inner in groups.items()
        if inner
    ]
    verbs = " ".join([*groups, "lab"])
    return _BASH.format(verbs=verbs, groups="\n".join(lines), domains="|".join(_VERBS_OF_DOMAINS.split()))


def _completion(session: Session, args: Namespace) -> int:
    print(script())
    return 0


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "shell", metavar="SHELL", choices=("bash",), nargs="?", default="bash", help="bash (the only choice)"
    )


VERBS: dict[str, Verb] = {
    "completion": Verb(
        run=_completion,
        declare=_declare,
        about="Prints a script with which bash completes verbs and domain names.",
        examples="veery completion bash > /etc/bash_completion.d/veery",
    ),
}
