"""`diffusional completion`: scripts that complete commands, options and choices, and file names elsewhere.

The script contains all words, so that completion does not start Python.
"""

from diffusional.cli.commands import COMMANDS
from diffusional.cli.options import options

_BASH = """\
# Completion of diffusional for bash.
_diffusional() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}" words=""
  # bash splits --option=value into three words.
  if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
  if (( COMP_CWORD == 1 )); then
    words="{commands} --help --version"
  else
    case "$command $prev" in
{values}
    esac
    if [[ -z $words ]]; then
      case "$command $cur" in
{names}
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
# File names elsewhere.
complete -o bashdefault -o default -F _diffusional diffusional
"""

_ZSH = """\
# Completion of diffusional for zsh, which uses that of bash.
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""


def script(shell: str) -> str:
    """Return the script for bash, zsh or fish.

    >>> script("bash").splitlines()[-1]
    'complete -o bashdefault -o default -F _diffusional diffusional'
    """
    return _fish() if shell == "fish" else _bash() if shell == "bash" else _ZSH + _bash()


def _bash() -> str:
    values, names = [], []
    for command, kind in COMMANDS.items():
        known = options(kind)
        values += [
            f'      "{command} {o.name}") words="{" ".join(o.choices)}" ;;'
            for o in known
            if o.choices and not o.positional
        ]
        named = [o.name for o in known if not o.positional]
        names.append(f'        "{command} -"*) words="{" ".join([*named, "--debug", "--help"])}" ;;')
        names += [
            f'        "{command} "*) words="{" ".join(o.choices)}" ;;' for o in known if o.positional and o.choices
        ]
    return _BASH.format(commands=" ".join(COMMANDS), values="\n".join(values), names="\n".join(names))


def _fish() -> str:
    lines = ["# Completion of diffusional for fish."]
    every = " ".join(COMMANDS)
    lines.append(f'complete -c diffusional -n "not __fish_seen_subcommand_from {every}" -f -a "{every}"')
    for command, kind in COMMANDS.items():
        when = f'complete -c diffusional -n "__fish_seen_subcommand_from {command}"'
        for option in options(kind):
            values = f'-f -a "{" ".join(option.choices)}"' if option.choices else ""
            if not option.positional:
                takes = "" if option.hint is bool else f"-r {values}"
                lines.append(f"{when} -l {option.name[2:]} {takes}".rstrip())
            elif values:
                lines.append(f"{when} {values}")
    return "\n".join(lines) + "\n"
