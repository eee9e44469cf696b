// SPDX-License-Identifier: Apache-2.0
/*
 * Tell of each TCP session that ends: whose it was, how long it lived and what it moved.
 *
 * A session begins where its socket leaves CLOSE or LISTEN and ends where it comes to
 * CLOSE, which the tracepoint sock:inet_sock_set_state tells. Only who connects, accepts or
 * closes does so in the process that it belongs to; the rest happens when segments come in,
 * in whatever process that interrupts.
 *
 * Read by Python, which puts common.h in front, and these macros:
 *   GRAFT                  security_sock_graft() can be probed
 */

/* include/net/tcp_states.h */
#define TCP_FIN_WAIT1 4
#define TCP_LAST_ACK 9
/* include/uapi/linux/in.h, IPPROTO_MPTCP */
#define MULTIPATH_TCP 262

/* What is known of a session before its end. */
struct opened {
	u64 time; /* ns since the boot */
	u32 connection; /* see connection_of(); 0 until it is established */
	u8 active; /* this side began it */
	u8 syn; /* and sent a SYN, which TCP_REPAIR does not */
	u8 told;
	struct identity identity; /* only of the process; no PID unless it is known yet */
};

/* A session that has ended, with all numbers in network byte order as those of its identity. */
struct life {
	u64 began; /* ns since the boot */
	u64 ended;
	u64 rx_bytes;
	u64 tx_bytes;
	struct identity identity;
};

/* Not with MAP_FLAGS: a burst of segments must not wait for memory. */
BPF_F_TABLE("hash", u64, struct opened, open, ANY_SIZE, 0);
/*
 * User space reads its memory and makes no system call on a map: the kprobe here would be
 * skipped on that CPU meanwhile (bpf_disable_instrumentation(), include/linux/bpf.h).
 */
BPF_RINGBUF_OUTPUT(lives, ANY_SIZE);

/*
 * Whether what runs is nobody's process: a thread that does whatever work the kernel has put off,
 * as opening NFS' connections, or one in which Multipath TCP opens and closes its sessions.
 */
static __always_inline bool is_helper(u64 socket)
{
	u32 flags = FETCH(u32, bpf_get_current_task(), OFFSET_flags);

	return flags & PF_WQ_WORKER ||
	       (flags & PF_KTHREAD && FIELD(u64, (void *)socket, OFFSET_icsk_ulp_ops));
}

/*
 * The address of a socket is used again: what it was before is forgotten. Whether there was
 * no room.
 */
static __always_inline bool begin(u64 socket, bool active)
{
	struct opened opened = {.time = bpf_ktime_get_boot_ns(), .active = active};
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (FIELD(u16, (void *)socket, OFFSET_sk_protocol) != IPPROTO_TCP)
		return false;
	if (active && !is_helper(socket)) {
		if (!task_matches(pid)) {
			open.delete(&socket);
			return false;
		}
		name_process(&opened.identity, pid);
	}
	return open.update(&socket, &opened);
}

/* The sequence numbers are there, and tell this connection from others. */
static __always_inline void establish(u64 socket, u8 from)
{
	struct opened *opened = open.lookup(&socket);
	void *tp = (void *)socket;

	if (!opened)
		return;
	opened->connection = connection_of(tp);
	/* TCP_REPAIR makes connections without a SYN; where two have met, it is acknowledged later.
	 */
	opened->syn =
	    opened->active && (FIELD(u64, tp, OFFSET_bytes_acked) || from == TCP_SYN_RECV);
}

/* The process that runs is the session's, unless nothing but the idle task runs. */
static __always_inline void claim(u64 socket)
{
	struct opened *opened = open.lookup(&socket);
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (!opened || opened->identity.pid || !pid || is_helper(socket))
		return;
	if (task_matches(pid))
		name_process(&opened->identity, pid);
	else
		open.delete(&socket);
}

/* Payload that the peer has acknowledged: neither a SYN nor a FIN is any. */
static __always_inline u64 sent(void *tp, bool syn, u8 state)
{
	u64 acked = FIELD(u64, tp, OFFSET_bytes_acked);
	u32 write_seq = FIELD(u32, tp, OFFSET_write_seq);

	if (syn && acked)
		acked--;
	if (acked && 1 << state & TCPF_FIN_QUEUED && FIELD(u32, tp, OFFSET_snd_una) == write_seq)
		acked--;
	return acked;
}

static __always_inline u64 received(void *tp)
{
	u64 bytes = FIELD(u64, tp, OFFSET_bytes_received);

	return bytes && FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DONE ? bytes - 1 : bytes;
}

static __always_inline void end(u64 socket, u8 state)
{
	void *tp = (void *)socket;
	struct opened *opened = open.lookup(&socket);
	u64 now = bpf_ktime_get_boot_ns();
	struct life *life;

	if (!opened)
		return;
	/* What was seen to begin was another's, and its end was not. */
	if (opened->connection && opened->connection != connection_of(tp)) {
		count(EVENTS_MISSED);
		goto out;
	}
	/*
	 * Nobody had accepted it yet. One that does not even get out of SYN_RECV lost its place to
	 * another for the same session (inet_ehash_nolisten(), net/ipv4/inet_hashtables.c), unless
	 * its SYN had data.
	 */
	if (!opened->identity.pid) {
		if (state == TCP_SYN_RECV && !FIELD(u64, tp, OFFSET_bytes_received))
			goto out;
		if (!nobody_matches())
			goto out;
	}
	life = lives.ringbuf_reserve(sizeof(*life));
	if (life) {
		life->began = bpf_htonll(opened->time);
		life->ended = bpf_htonll(now);
		life->rx_bytes = bpf_htonll(received(tp));
		life->tx_bytes = bpf_htonll(sent(tp, opened->syn, state));
		life->identity = opened->identity;
		if (!opened->identity.pid)
			name_nobody(&life->identity);
		name_session(&life->identity, tp);
		lives.ringbuf_submit(life, BPF_RB_NO_WAKEUP);
	} else {
		count(EVENTS_MISSED);
	}
out:
	opened->told = 1; /* what a softirq has interrupted may keep it from being deleted */
	open.delete(&socket);
}

/*
 * Whether the present task does that, with the socket's lock, or with that of a subflow of
 * Multipath TCP. Else it is interrupted by the end of a handshake, for which a shutdown() has
 * waited.
 */
static __always_inline bool is_shut_down(u64 socket)
{
	return is_owned((void *)socket) || FIELD(u64, (void *)socket, OFFSET_icsk_ulp_ops);
}

/* Whether there was no room for a session that begins. */
static __always_inline bool changes(u64 socket, u8 from, u8 to)
{
	bool missed = false;

	if (to == TCP_SYN_SENT)
		missed = begin(socket, true);
	else if (to == TCP_SYN_RECV && from != TCP_SYN_SENT)
		missed = begin(socket, false);
	else if ((to == TCP_FIN_WAIT1 || to == TCP_LAST_ACK) && is_shut_down(socket))
		claim(socket);
	else if (to == TCP_CLOSE && session_matches((void *)socket))
		end(socket, from);
	if (to == TCP_ESTABLISHED || from == TCP_SYN_RECV) /* it may be closed before */
		establish(socket, from);
	if (to == TCP_ESTABLISHED || to == TCP_CLOSE)
		if (!session_matches((void *)socket))
			open.delete(&socket);
	return missed;
}

/*
 * (sk, oldstate, newstate) since Linux 4.16, include/trace/events/sock.h. Unlike the programs
 * of other probes, those of raw tracepoints are not skipped while the CPU is at another
 * tracer's maps (__bpf_trace_run(), kernel/trace/bpf_trace.c).
 */
static __always_inline int at_change(u64 socket, u8 from, u8 to)
{
	changes(socket, from, to);
	return 0;
}

/*
 * Attached after it, to make up for it: since Linux 6.1 a program is skipped where a segment
 * comes in while it runs on that CPU for another socket, but then this one is not. Mostly there
 * is nothing left to do, and nothing here is wrong if it is done twice.
 */
static __always_inline int make_up(u64 socket, u8 from, u8 to)
{
	struct opened *opened = open.lookup(&socket);
	bool left; /* it has not ended, not been established, or not begun */

	if (to == TCP_CLOSE)
		left = opened && !opened->told;
	else if (to == TCP_ESTABLISHED)
		left = opened && !opened->connection;
	else
		left = !opened && (to == TCP_SYN_RECV || to == TCP_SYN_SENT);
	if (left && changes(socket, from, to))
		count(EVENTS_MISSED);
	return 0;
}

/*
 * accept(2) gives the socket to its process (sock_graft(), include/net/sock.h). Of Multipath TCP
 * that is the one above the session's.
 */
static __always_inline int at_graft(void *sk)
{
	count(LOOKS_PROVED);
#ifdef OFFSET_first_subflow
	if (FIELD(u16, sk, OFFSET_sk_protocol) == MULTIPATH_TCP)
		sk = FETCH(void *, sk, OFFSET_first_subflow);
#endif
	claim((u64)sk);
	return 0;
}

#define CHANGE (u64) ARGUMENT(0), (u64)ARGUMENT(1), (u64)ARGUMENT(2)
TRACEPOINT(event, inet_sock_set_state, at_change(CHANGE))
TRACEPOINT(again, inet_sock_set_state, make_up(CHANGE))
#ifdef GRAFT
ENTRY(security_sock_graft, at_graft)
#endif
