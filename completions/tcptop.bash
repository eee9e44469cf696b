# SPDX-License-Identifier: Apache-2.0
# Completion for bash, with the helpers of the package bash-completion.

_tcptop()
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
        --cgroupmap | --mntnsmap)
            _filedir
            return
            ;;
        -s | --sort)
            COMPREPLY=($(compgen -W 'all sent received' -- "$cur"))
            return
            ;;
        --probe)
            COMPREPLY=($(compgen -W 'auto fentry kprobe' -- "$cur"))
            return
            ;;
        -L | --localport | -D | --remoteport | -r | --rows | --max-sessions)
            return
            ;;
    esac

    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W '-h --help -C --noclear -S --nosummary -p --pid
            --cgroupmap --mntnsmap -c --cgroup -4 --ipv4 -6 --ipv6 -L --localport
            -D --remoteport -s --sort -r --rows --json --csv --probe --max-sessions
            -v --verbose --version' -- "$cur"))
    fi
} &&
    complete -F _tcptop tcptop
