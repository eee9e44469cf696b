# SPDX-License-Identifier: Apache-2.0
# Completion for bash, with the helpers of the package bash-completion.

_tcptop()
{
    local cur prev words cword options tool=${1##*/}
    _init_completion || return

    case $tool:$prev in
        *:-p | *:--pid)
            _pids
            return
            ;;
        *:-c | *:--cgroup)
            _filedir -d
            return
            ;;
        *:--cgroupmap | *:--mntnsmap)
            _filedir
            return
            ;;
        tcptop*:-s | *:--sort)
            COMPREPLY=($(compgen -W 'all sent received' -- "$cur"))
            return
            ;;
        *:--probe)
            COMPREPLY=($(compgen -W 'auto fentry kprobe' -- "$cur"))
            return
            ;;
        *:-L | *:--localport | *:-D | *:--remoteport | *:-r | *:--rows | *:--max-sessions)
            return
            ;;
    esac

    case $tool in
        tcplife*)
            options='-h --help -T --time -t --timestamp -w --wide -s --csv --json
                -p --pid -c --cgroup -4 --ipv4 -6 --ipv6 -L --localport
                -D --remoteport -v --verbose --version'
            ;;
        tcptop*)
            options='-h --help -C --noclear -S --nosummary -p --pid
                --cgroupmap --mntnsmap -c --cgroup -4 --ipv4 -6 --ipv6 -L --localport
                -D --remoteport -s --sort -r --rows --json --csv --probe --max-sessions
                -v --verbose --version'
            ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    fi
} &&
    complete -F _tcptop tcptop tcplife
