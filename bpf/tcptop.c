// SPDX-License-Identifier: Apache-2.0
/*
 * Count what each process moves over each TCP session.
 *
 * Whoever sends on or receives from a TCP socket owns its lock meanwhile and
 * gives it back with release_sock() (net/core/sock.c): send, sendfile, splice,
 * io_uring, kTLS, zerocopy and readers inside the kernel alike, and a blocked
 * call each time it goes to sleep. So one probe there sees all of them, with
 * the socket held still: how far TCP's own sequence numbers write_seq and
 * copied_seq moved since the last look is what this task sent and took. A
 * failed send or a peek moves nothing. A look that was skipped (a kernel may
 * preempt a probe, and then skips it for others on that CPU) is made up for by
 * the next one, and there is one more at the end; see __tcp_close below.
 *
 * Read by Python, which puts common.h in front, and these macros:
 *   SOCKET_STORAGE         positions live in the socket itself; otherwise in a hash
 *   MAX_SESSIONS, MAX_SOCKETS       sizes of the maps
 *   HAVE_BTF               the kernel has BTF, and so iterators
 */

/* include/net/tcp.h: recv(MSG_OOB) has taken the urgent byte. */
#define TCP_URG_READ 0x0400
/* include/linux/sched.h, unchanged since 2.6.27 */
#define PF_KTHREAD 0x00200000

/* A row of the table: what one process moved over one session in one interval. */
struct session {
	u64 rx_bytes;
	u64 tx_bytes;
	struct identity identity;
};

/* A socket's address is used again as soon as it is freed: born tells its lives apart. */
struct session_key {
	u64 socket;
	u32 born;
	u32 pid;
};

/* What the first process to use a socket in an interval has moved in it. */
struct share {
	u64 rx_bytes;
	u64 tx_bytes;
	u32 interval;
	u32 quick_pid; /* use.pid, unless urgent data calls for a closer look */
	struct session_key use;
};

/* What is kept of a socket while it lives. */
struct position {
	struct share shares[2]; /* of the latest even and odd interval it was used in */
	/* Where TCP's counters stood at the last look. */
	u32 write_seq;
	u32 copied_seq;
	u32 first_seq; /* sequence number of the first byte ever sent */
	u32 born; /* low half of the ns clock when first seen */
	u8 urgent; /* urgent data has come since the urgent mark was last passed */
	u8 urgent_taken; /* and its byte was read with MSG_OOB */
};

/*
 * The rows of even and of odd intervals. A row is made when a process first uses a session
 * in an interval. What that process moves is then summed up in the socket's share, which
 * takes no second lookup, and gets into the row in the end: by settle(), or by user space.
 * Only what other processes do with the same socket goes to their rows directly.
 *
 * Nothing is lost between two intervals: user space sets the number of the next, waits
 * until every program that may have seen the old number has ended, and only then reads
 * the rows and shares of the old, in which nobody writes any more.
 */
BPF_F_TABLE("hash", struct session_key, struct session, rows_even, MAX_SESSIONS, MAP_FLAGS);
BPF_F_TABLE("hash", struct session_key, struct session, rows_odd, MAX_SESSIONS, MAP_FLAGS);
BPF_ARRAY_OF_MAPS(rows, "rows_even", 2);

#ifdef SOCKET_STORAGE
BPF_SK_STORAGE(positions, struct position);
#else
BPF_F_TABLE("hash", u64, struct position, positions, MAX_SOCKETS, MAP_FLAGS);
#endif

/*
 * TCP(sk): a pointer whose fields can be read, NULL if fentry knows that sk is no TCP
 * socket. A kprobe asks IS_TCP, and only of sockets that it does not know yet.
 */
#ifdef PROBE_FENTRY
#define TCP(sk) ((void *)bpf_skc_to_tcp_sock(sk))
#define IS_TCP(tp) true
#else
#define TCP(sk) ((void *)(sk))
#define IS_TCP(tp) (FETCH(u16, tp, OFFSET_sk_protocol) == IPPROTO_TCP)
#endif

static __always_inline struct position *position_of(void *tp)
{
#ifdef SOCKET_STORAGE
	return positions.sk_storage_get(tp, 0, 0);
#else
	u64 socket = (u64)tp;

	return positions.lookup(&socket);
#endif
}

static __always_inline struct position *remember(void *tp, struct position *position)
{
#ifdef SOCKET_STORAGE
	return positions.sk_storage_get(tp, position, BPF_SK_STORAGE_GET_F_CREATE);
#else
	u64 socket = (u64)tp;

	positions.update(&socket, position);
	return positions.lookup(&socket);
#endif
}

static __always_inline void forget(void *tp)
{
#ifdef SOCKET_STORAGE
	positions.sk_storage_delete(tp);
#else
	u64 socket = (u64)tp;

	positions.delete(&socket);
#endif
}

/*
 * The sequence number of the first byte that a socket ever sent: what it has
 * sent, less the bytes of all segments that were no retransmission. tcp_sock
 * counts both since Linux 4.19. A FIN takes a sequence number, too.
 */
static __always_inline u32 first_seq(void *tp, u32 fin)
{
	u32 sent =
	    (u32)FIELD(u64, tp, OFFSET_bytes_sent) - (u32)FIELD(u64, tp, OFFSET_bytes_retrans);

	return FIELD(u32, tp, OFFSET_snd_nxt) - sent - fin;
}

/*
 * A socket met for the first time: everything it ever moved is still to be counted,
 * unless it is older than this program. NULL if it is not connected, or there is no room
 * to remember it.
 */
static __always_inline struct position *meet(void *tp)
{
	u8 state = FIELD(u8, tp, OFFSET_skc_state);
	u32 write_seq = FIELD(u32, tp, OFFSET_write_seq);
	u32 fin = (1 << state & TCPF_FIN_QUEUED) && FIELD(u32, tp, OFFSET_snd_nxt) == write_seq;
	struct position position = {
	    .first_seq = first_seq(tp, fin),
	    .born = bpf_ktime_get_ns(),
	};
	struct position *remembered;
	int index = TRACING;
	u64 *tracing = counters.lookup(&index);

	if (!IS_TCP(tp) || 1 << state & (TCPF_SYN_SENT | TCPF_LISTEN))
		return 0;
	if (!FIELD(u16, tp, OFFSET_skc_dport)) /* it has no peer */
		return 0;
#ifndef SOCKET_STORAGE
	if (FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DEAD) /* counted to its end, and forgotten */
		return 0;
#endif
	if (tracing && *tracing) {
		position.write_seq = position.first_seq;
		position.copied_seq =
		    FIELD(u32, tp, OFFSET_rcv_nxt) - (u32)FIELD(u64, tp, OFFSET_bytes_received);
	} else {
		position.write_seq = write_seq;
		position.copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	}
	remembered = remember(tp, &position);
	if (!remembered)
		count(EVENTS_MISSED);
	return remembered;
}

/* The number of the running interval. */
static __always_inline u64 running(void)
{
	int index = INTERVAL;
	u64 *number = counters.lookup(&index);

	return number ? *number : 0;
}

static __always_inline void *rows_of(u32 interval)
{
	int parity = interval & 1;

	return rows.lookup(&parity);
}

/* The row of the current process' use of a session, made unless there is one; NULL for no room. */
static __always_inline struct session *make_row(void *tp, struct session_key *use, u32 interval)
{
	struct session row = {};
	void *rows = rows_of(interval);
	struct session *made;

	if (!rows)
		return 0;
	made = bpf_map_lookup_elem(rows, use);
	if (made)
		return made;
	name_session(&row.identity, tp);
	name_process(&row.identity, use->pid);
	if (!bpf_map_update_elem(rows, use, &row, BPF_NOEXIST))
		count(ROWS_MADE);
	return bpf_map_lookup_elem(rows, use);
}

/* Put what a socket's shares of these intervals hold into their rows. */
static __always_inline void settle(void *tp, struct position *position, u32 first, u32 last)
{
	/* One after the other: an iterator's value may not be read at a variable offset. */
	for (int parity = 0; parity < 2; parity++) {
		struct share *share = &position->shares[parity];
		struct session_key use = share->use; /* what a map is asked for is on the stack */
		struct session *row;
		void *rows;

		if (share->interval < first || share->interval > last)
			continue;
		rows = rows_of(parity);
		if (!rows)
			continue;
		row = bpf_map_lookup_elem(rows, &use);
		if (row) { /* else user space has taken it, after it had read the share */
			row->rx_bytes = share->rx_bytes;
			row->tx_bytes = share->tx_bytes;
		}
	}
}

/* The socket's end; user space may still be at the last interval. */
static __always_inline void settle_now(void *tp)
{
	struct position *position = position_of(tp);
	u32 interval = running();

	if (position)
		settle(tp, position, interval - 1, interval);
}

/*
 * The urgent byte has a sequence number in the stream, but recv() jumps over it
 * unless SO_OOBINLINE is set, and recv(MSG_OOB) takes it without moving
 * copied_seq (tcp_recv_urg() and tcp_recvmsg_locked(), net/ipv4/tcp.c).
 * Returns what is to be added to the movement of copied_seq.
 */
static __always_inline int urgent_bytes(void *tp, struct position *position, u32 copied_seq)
{
	u32 mark = FIELD(u32, tp, OFFSET_urg_seq);
	int bytes = 0;

	if (FIELD(u64, tp, OFFSET_skc_flags) & SOCK_URGINLINE)
		return 0;
	if (!position->urgent_taken && FIELD(u16, tp, OFFSET_urg_data) & TCP_URG_READ) {
		position->urgent_taken = 1;
		bytes++;
	}
	if (mark - position->copied_seq < copied_seq - position->copied_seq) {
		position->urgent = 0;
		position->urgent_taken = 0;
		bytes--;
	}
	return bytes;
}

/*
 * Whether a kernel thread works on a socket for its owner: kTLS and MPTCP have such, for
 * what did not fit into the send buffer or came while nobody was reading.
 */
static __always_inline bool helper_at_work(void *tp)
{
	return FIELD(u64, tp, OFFSET_icsk_ulp_ops) &&
	       FETCH(u32, bpf_get_current_task(), OFFSET_flags) & PF_KTHREAD;
}

/* Count what was moved on this socket since the last look; the caller's task owns its lock. */
static __always_inline void look(struct sock *sk, bool closing)
{
	void *tp = TCP(sk);
	u64 interval;
	u32 pid, write_seq, copied_seq, tx, rx;
	struct position *position;
	struct share *share;
	struct session *row;
	bool wanted;
	u8 state;

	if (!tp || !session_matches(tp))
		return;
	position = position_of(tp);
	if (!position)
		position = meet(tp);
	if (!position)
		return;
	/* Nobody else has the lock of the socket, so no other CPU adds to its shares and rows. */
	pid = bpf_get_current_pid_tgid() >> 32;
	wanted = task_matches(pid);
	if (!wanted && !position->urgent && !helper_at_work(tp)) {
		/* It is not to be counted, nor by the next one to use the socket. */
		position->write_seq = FIELD(u32, tp, OFFSET_write_seq);
		position->copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
		return;
	}
	interval = running();
	share = &position->shares[interval & 1];
	asm("" : "+r"(share)); /* or the compiler computes it again at every use */
	state = FIELD(u8, tp, OFFSET_skc_state);

	/* The common case, in as few instructions as it takes: the same process goes on. */
	if (!closing && wanted && share->interval == interval && share->quick_pid == pid &&
	    state == TCP_ESTABLISHED) {
		write_seq = FIELD(u32, tp, OFFSET_write_seq);
		if (write_seq != position->write_seq) {
			share->tx_bytes += (u32)(write_seq - position->write_seq);
			position->write_seq = write_seq;
		}
		copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
		if (copied_seq != position->copied_seq) {
			share->rx_bytes += (u32)(copied_seq - position->copied_seq);
			position->copied_seq = copied_seq;
		}
		return;
	}

	write_seq = FIELD(u32, tp, OFFSET_write_seq);
	copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	tx = write_seq - position->write_seq;
	rx = copied_seq - position->copied_seq;
	if (position->urgent)
		rx += urgent_bytes(tp, position, copied_seq);
	if (!(tx | rx))
		return;
	if (!closing && helper_at_work(tp))
		return; /* the next look, by the owner, counts it */
	position->write_seq = write_seq;
	position->copied_seq = copied_seq;
	if (state != TCP_ESTABLISHED) {
		if (!FIELD(u16, tp, OFFSET_skc_dport)) /* tcp_disconnect() has reset the counters */
			return;
		/* A FIN is the last to move either counter, by one, and is no byte. */
		if (tx && (1 << state & TCPF_FIN_QUEUED ||
			   (state == TCP_CLOSE && first_seq(tp, 0) != position->first_seq)))
			tx--;
		if (rx && FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DONE &&
		    copied_seq == FIELD(u32, tp, OFFSET_rcv_nxt))
			rx--;
	}
	if (!(tx | rx) || !wanted)
		return;
	struct session_key use = {
	    .socket = (u64)tp,
	    .born = position->born,
	    .pid = pid,
	};
	row = make_row(tp, &use, interval);
	if (!row) {
		count(EVENTS_MISSED);
		return;
	}
	if (share->interval != interval) {
		share->interval = interval;
		share->use = use;
		share->rx_bytes = 0;
		share->tx_bytes = 0;
	}
	if (share->use.pid == pid) {
		share->quick_pid = position->urgent ? 0 : pid;
		share->rx_bytes += rx;
		share->tx_bytes += tx;
	} else {
		row->rx_bytes += rx;
		row->tx_bytes += tx;
	}
}

/* The task has done what it wanted, or goes to sleep until it can go on. */
static __always_inline int at_release_sock(struct sock *sk)
{
	look(sk, false);
	return 0;
}

/*
 * The last user of the socket closes it: what the last look missed is counted now. This
 * could be skipped, too, but hardly for the very same socket.
 */
static __always_inline int at___tcp_close(struct sock *sk)
{
	look(sk, true);
	return 0;
}

/*
 * __tcp_close() comes here when the socket is nobody's any more, still in the process that
 * closes. It holds a spin lock with bottom halves off, so that this program is neither
 * preempted nor skipped because another one of its kind was.
 */
static __always_inline int at___release_sock(struct sock *sk)
{
	void *tp = TCP(sk);

	if (tp && FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DEAD) {
		settle_now(tp);
#ifndef SOCKET_STORAGE /* which goes with the socket */
		forget(tp);
#endif
	}
	return 0;
}

/* A reset by this side: its counters start anew, and so may another session. */
static __always_inline int at_tcp_disconnect(struct sock *sk)
{
	void *tp = TCP(sk);

	if (tp) {
		settle_now(tp);
		forget(tp);
	}
	return 0;
}

/* tcp_check_urg() has seen urgent data coming. */
static __always_inline int at_sk_send_sigurg(struct sock *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;

	if (position) {
		position->urgent = 1;
		position->shares[0].quick_pid = 0;
		position->shares[1].quick_pid = 0;
	}
	return 0;
}

/* Functions of the kernel whose first argument is the socket, at their entry. */
#ifdef PROBE_FENTRY
#define PROBE(function)                                                                            \
	KFUNC_PROBE(function, struct sock *sk)                                                     \
	{                                                                                          \
		return at_##function(sk);                                                          \
	}
#else
#define PROBE(function)                                                                            \
	int kprobe__##function(struct pt_regs *ctx)                                                \
	{                                                                                          \
		return at_##function((struct sock *)PT_REGS_PARM1(ctx));                           \
	}
#endif
/* bcc 0.18 puts a function's section in front of the macro, so each makes one function. */
PROBE(release_sock)
PROBE(__tcp_close)
PROBE(__release_sock)
PROBE(tcp_disconnect)
PROBE(sk_send_sigurg)

#ifdef HAVE_BTF
struct tcp_iteration {
	void *meta;
	struct sock *sk;
};

/* Every TCP socket of a network namespace, once at the start: only what comes is counted. */
int bpf_iter__tcp(struct tcp_iteration *at)
{
	void *tp = at->sk ? (void *)bpf_skc_to_tcp_sock(at->sk) : 0;

	if (tp && session_matches(tp) && !position_of(tp))
		meet(tp);
	return 0;
}
#endif

#ifdef SOCKET_STORAGE
struct storage_iteration {
	void *meta;
	void *map;
	struct sock *sk;
	struct position *position;
};

/* Every position, after each interval that saw any bytes. */
int bpf_iter__bpf_sk_storage_map(struct storage_iteration *at)
{
	u32 over = running() - 1;

	if (at->sk && at->position)
		settle(at->sk, at->position, over, over);
	return 0;
}
#endif
