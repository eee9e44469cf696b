# SPDX-License-Identifier: Apache-2.0
# Completion for bash, with the helpers of the package bash-completion.

_tcplife()
{
    local cur prev words cword
    _init_completion || return

    case $prev in
        -p | --pid)
            _pids
            return
            ;;
        -c | --cgroup)
            _filedir -d
            return
            ;;
        -L | --localport | -D | --remoteport)
            return
            ;;
    esac

    COMPREPLY=($(compgen -W '-h --help -T --time -t --timestamp -w --wide -s --csv
        --json -p --pid -c --cgroup -4 --ipv4 -6 --ipv6 -L --localport
        -D --remoteport -v --verbose --version' -- "$cur"))
} &&
    complete -F _tcplife tcplife
