// SPDX-License-Identifier: Apache-2.0
/*
 * Count what each process moves over each TCP session.
 *
 * Whoever sends on or receives from a TCP socket owns its lock meanwhile and
 * gives it back with release_sock() (net/core/sock.c): send, sendfile, splice,
 * io_uring, zerocopy and readers inside the kernel alike, and a blocked call
 * each time it goes to sleep. So one probe there sees all of them, with the
 * socket held still: how far TCP's own sequence numbers write_seq and
 * copied_seq moved since the last look is what this task sent and took. A
 * failed send or a peek moves nothing.
 *
 * Any look may be skipped: a fentry program while a task that it interrupted
 * or preempted is in the same program on that CPU, a kprobe also while such a
 * task is in bpf(2) at anybody's map (bpf_disable_instrumentation()). The next
 * look makes up for it, and so that there is one, the tracepoints
 * sock:inet_sock_set_state and tcp:tcp_destroy_sock show where a connection
 * begins and ends. They are called with preemption off and skipped only inside
 * themselves (__bpf_trace_run(), kernel/trace/bpf_trace.c), that is in softirqs,
 * and tcp_destroy_sock not even there: it has bottom halves off.
 *
 * A connection is told from the one that had the same socket or address before
 * by an id, see connection_of(). What is known of one is never applied to
 * another, and where a connection is met later than at its beginning, it is
 * counted from where it stands. So a number may come late or, if `missed` says
 * so, not at all; it is never too large.
 *
 * Read by Python, which puts common.h in front, and these macros:
 *   SOCKET_STORAGE         positions live in the socket itself; otherwise in a hash
 *   MAX_SESSIONS, MAX_SOCKETS, MAX_SPECIALS    sizes of the maps
 *   HAVE_BTF               the kernel has BTF, and so iterators
 *   HAVE_function          the kernel has this function
 */

/* include/net/tcp.h: recv(MSG_OOB) has taken the urgent byte. */
#define TCP_URG_READ 0x0400
/* include/linux/net.h */
#define SOCK_STREAM 1

/* One process' use of one connection, of which a socket may have several in its life. */
struct session_key {
	u64 socket;
	u32 connection;
	u32 pid;
};

/* A row of the table: what one process moved over one session in one interval. */
struct session {
	u64 rx_bytes;
	u64 tx_bytes;
	struct identity identity;
	u64 position; /* address of the position whose share has these numbers; 0 if they are here
		       */
};

/* A row on its way to user space. */
struct record {
	u64 rx_bytes;
	u64 tx_bytes;
	struct identity identity;
	u32 over; /* there will be no more of this key */
	struct session_key key;
};

/* What the first process to use a socket in an interval has moved in it. */
struct share {
	u64 rx_bytes;
	u64 tx_bytes;
	u32 interval;
	u32 quick_pid; /* key.pid, unless something calls for a closer look */
	struct session_key key;
};

/* How much of a position is known. */
enum {
	KNOWN,
	BEGUN, /* connect() has begun: nothing yet, there are no sequence numbers */
	NOTED, /* read without the socket's lock: its connection is yet to be asked for */
};

/* What is kept of a connection. */
struct position {
	struct share shares[2]; /* of the latest even and odd interval it was used in */
	/* Where TCP's counters stood at the last look. */
	u32 write_seq;
	u32 copied_seq;
	u32 connection;
	u32 urgent_mark; /* urg_seq */
	u8 stage;
	u8 active; /* a SYN of this side comes before the first byte */
	u8 send_closed; /* what still moves write_seq is a FIN */
	u8 special; /* counted through `specials` */
	u8 urgent; /* urgent data has come since the urgent mark was last passed */
	u8 urgent_taken; /* and its byte was read with MSG_OOB */
};

/*
 * Sockets of which bytes are also moved by others than their owners, who pass no
 * release_sock(): those with a helper protocol (kernel TLS, Multipath TCP) or other users in
 * the kernel (a sockmap). Only their totals are read, by the one task that drains, so there
 * is nobody to race with. The key has no pid.
 */
struct special {
	u64 rx_bytes; /* reported so far */
	u64 tx_bytes;
	u64 rx_total; /* as of the last change of state */
	u64 tx_total;
	u32 rx_first; /* sequence numbers of the first bytes */
	u32 tx_first;
	u32 noted; /* the interval in which a process used it last */
	u8 wanted;
	u8 by_kernel; /* `who` is a thread of the kernel */
	u8 send_closed; /* tx_total is final */
	u8 over; /* and so is rx_total */
	struct identity who;
};

/*
 * The rows of even and of odd intervals. A row is made when a process first uses a session
 * in an interval. What that process moves is then summed up in the socket's share, which
 * takes no second lookup, and joined to the row in the end: by settle(), or by emit_row().
 * Only what other processes do with the same socket goes to their rows directly.
 *
 * Nothing is lost between two intervals: user space sets the number of the next, waits
 * until every program that may have seen the old number has ended, and only then reads
 * the rows and shares of the old, in which nobody writes any more.
 */
BPF_F_TABLE("hash", struct session_key, struct session, rows_even, MAX_SESSIONS, MAP_FLAGS);
BPF_F_TABLE("hash", struct session_key, struct session, rows_odd, MAX_SESSIONS, MAP_FLAGS);
BPF_ARRAY_OF_MAPS(rows, "rows_even", 2);
BPF_F_TABLE("hash", struct session_key, struct special, specials, MAX_SPECIALS, MAP_FLAGS);

#ifdef SOCKET_STORAGE
BPF_SK_STORAGE(positions, struct position);
#else
BPF_F_TABLE("hash", u64, struct position, positions, MAX_SOCKETS, MAP_FLAGS);
#endif

/*
 * TCP(sk): a pointer whose fields can be read, NULL if fentry knows that sk is no TCP
 * socket. is_tcp() is for sockets that are not known yet: bpf_skc_to_tcp_sock() takes raw
 * sockets of protocol 6 for TCP, and kprobes do not know at all.
 */
#ifdef PROBE_FENTRY
#define TCP(sk) ((void *)bpf_skc_to_tcp_sock(sk))
#else
#define TCP(sk) ((void *)(sk))
#endif

static __always_inline bool is_tcp(void *tp)
{
	return FIELD(u16, tp, OFFSET_sk_protocol) == IPPROTO_TCP &&
	       FIELD(u16, tp, OFFSET_sk_type) == SOCK_STREAM;
}

static __always_inline struct position *position_of(void *tp)
{
#ifdef SOCKET_STORAGE
	return positions.sk_storage_get(tp, 0, 0);
#else
	u64 socket = (u64)tp;

	return positions.lookup(&socket);
#endif
}

/* Keep a position, unless there is one already. NULL if there is no room. */
static __always_inline struct position *remember(void *tp, struct position *position)
{
	struct position *kept;
#ifdef SOCKET_STORAGE
	kept = positions.sk_storage_get(tp, position, BPF_SK_STORAGE_GET_F_CREATE);
#else
	u64 socket = (u64)tp;

	positions.insert(&socket, position);
	kept = positions.lookup(&socket);
#endif
	if (!kept)
		count(EVENTS_MISSED);
	return kept;
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

/* The sequence number of the first byte ever received. */
static __always_inline u32 first_received(void *tp)
{
	return FIELD(u32, tp, OFFSET_rcv_nxt) - (u32)FIELD(u64, tp, OFFSET_bytes_received);
}

/* What was moved before is not counted. */
static __always_inline void stand(struct position *position, void *tp)
{
	position->write_seq = FIELD(u32, tp, OFFSET_write_seq);
	position->copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	position->urgent_mark = FIELD(u32, tp, OFFSET_urg_seq);
}

/* Everything that this connection ever moves is counted. */
static __always_inline void start(struct position *position, void *tp)
{
	position->connection = connection_of(tp);
	position->write_seq = position->connection + position->active;
	position->copied_seq = first_received(tp);
	position->stage = KNOWN;
}

/* One of the counters that user space sets. */
static __always_inline u64 setting(u32 counter)
{
	int index = counter;
	u64 *value = counters.lookup(&index);

	return value ? *value : 0;
}

/* The number of the running interval. */
static __always_inline u64 running(void)
{
	return setting(INTERVAL);
}

static __always_inline u64 phase(void)
{
	return setting(PHASE);
}

static __always_inline void *rows_of(u32 interval)
{
	int parity = interval & 1;

	return rows.lookup(&parity);
}

/* The row of the current process' use of a session, made unless there is one; NULL for no room. */
static __always_inline struct session *make_row(void *tp, struct session_key *key, u32 interval)
{
	struct session row = {};
	void *rows = rows_of(interval);
	struct session *made;

	if (!rows)
		return 0;
	made = bpf_map_lookup_elem(rows, key);
	if (made)
		return made;
	name_session(&row.identity, tp);
	name_process(&row.identity, key->pid);
	if (!bpf_map_update_elem(rows, key, &row, BPF_NOEXIST))
		count(ROWS_MADE);
	return bpf_map_lookup_elem(rows, key);
}

/*
 * The position is about to go: its rows get what its shares hold. User space may still be at
 * the last interval.
 */
static __always_inline void settle(struct position *position)
{
#ifdef HAVE_BTF
	u32 last = running() - 1;

	for (int parity = 0; parity < 2; parity++) {
		struct share *share = &position->shares[parity];
		struct session_key key = share->key; /* what a map is asked for is on the stack */
		struct session *row;
		void *rows;

		if (share->interval < last)
			continue;
		rows = rows_of(parity);
		if (!rows)
			continue;
		row = bpf_map_lookup_elem(rows, &key);
		if (row) { /* else user space has taken it, after it had read the share */
			row->rx_bytes = share->rx_bytes;
			row->tx_bytes = share->tx_bytes;
			row->position = 0;
		}
	}
#endif
}

/* Another connection has the socket now. */
static __always_inline void begin_anew(struct position *position)
{
	settle(position);
	__builtin_memset(position, 0, sizeof(*position));
}

/* Whether this side's FIN may be in write_seq already. */
static __always_inline bool fin_queued(u8 state)
{
	return 1 << state & TCPF_FIN_QUEUED;
}

/* TCP's counters, all read at about the same time. */
struct tcp_counters {
	u32 copied_seq;
	u32 write_seq;
	u32 rcv_nxt;
	u32 snd_una;
	u64 bytes_received;
	u64 bytes_acked;
	u64 flags;
	u8 state;
};

#define READ_COUNTERS(READ, tp)                                                                    \
	{                                                                                          \
	    .copied_seq = READ(u32, tp, OFFSET_copied_seq),                                        \
	    .write_seq = READ(u32, tp, OFFSET_write_seq),                                          \
	    .rcv_nxt = READ(u32, tp, OFFSET_rcv_nxt),                                              \
	    .snd_una = READ(u32, tp, OFFSET_snd_una),                                              \
	    .bytes_received = READ(u64, tp, OFFSET_bytes_received),                                \
	    .bytes_acked = READ(u64, tp, OFFSET_bytes_acked),                                      \
	    .flags = READ(u64, tp, OFFSET_skc_flags),                                              \
	    .state = READ(u8, tp, OFFSET_skc_state),                                               \
	}

/* The peer's FIN is the last in rcv_nxt, and was read. */
static __always_inline bool fin_read(u64 flags, u32 copied_seq, u32 rcv_nxt)
{
	return flags & SOCK_DONE && copied_seq == rcv_nxt;
}

/*
 * The bytes that were taken and sent since a connection began. The counters may have moved
 * while they were read: the low half of each total is exact as of some moment, and the high
 * half is the nearest to what TCP's 64-bit counters say.
 */
static __always_inline u64 taken(struct tcp_counters *at, u32 first)
{
	u64 about = at->bytes_received - (u32)(at->rcv_nxt - at->copied_seq);
	u32 low = at->copied_seq - first - fin_read(at->flags, at->copied_seq, at->rcv_nxt);

	return about + (s32)(low - (u32)about);
}

static __always_inline u64 sent(struct tcp_counters *at, u32 first)
{
	u64 about = at->bytes_acked + (u32)(at->write_seq - at->snd_una);
	u32 low = at->write_seq - first - fin_queued(at->state);

	return about + (s32)(low - (u32)about);
}

/* Whether others than its owner may move a socket's bytes. */
static __always_inline bool is_special(void *tp)
{
	return FIELD(u64, tp, OFFSET_icsk_ulp_ops) || FIELD(u64, tp, OFFSET_sk_user_data);
}

/*
 * From now on a connection is counted by its totals, of which all up to now has been counted;
 * the caller has its lock.
 */
static __always_inline void make_special(void *tp, struct position *position)
{
	struct session_key key = {.socket = (u64)tp, .connection = position->connection};
	struct tcp_counters now = READ_COUNTERS(FIELD, tp);
	struct special special = {
	    .rx_first = first_received(tp),
	    .tx_first = position->connection + position->active,
	    .wanted = nobody_matches(),
	};

	special.rx_bytes = taken(&now, special.rx_first);
	special.tx_bytes = sent(&now, special.tx_first);
	name_session(&special.who, tp);
	special.who.comm[0] = '-';
	if (specials.update(&key, &special))
		return; /* no room, so it goes on as others do */
	count(SPECIALS_MADE);
	position->special = 1;
	position->shares[0].quick_pid = 0;
	position->shares[1].quick_pid = 0;
}

/*
 * Who uses a socket with helpers. These are threads of the kernel, and so are some users (nbd,
 * NFS): one that works while no process comes is taken for a user.
 */
static __always_inline void note_user(struct special *special, u32 pid, u32 interval)
{
	bool kernel = FETCH(u32, bpf_get_current_task(), OFFSET_flags) & PF_KTHREAD;

	if (kernel && special->noted && !special->by_kernel && interval - special->noted < 2)
		return;
	special->noted = interval;
	special->by_kernel = kernel;
	special->wanted = task_matches(pid);
	name_process(&special->who, pid);
}

static __always_inline struct special *special_of(void *tp, struct position *position)
{
	struct session_key key = {.socket = (u64)tp, .connection = position->connection};

	return specials.lookup(&key);
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
 * A connection of which no beginning was seen: it is counted from where it stands. That is
 * its beginning, mostly: connect() and accept() are looked at, too.
 */
static __always_inline void meet(void *tp)
{
	u8 state = FIELD(u8, tp, OFFSET_skc_state);
	struct position position = {.stage = NOTED};

	if (phase() == PROVING)
		count(LOOKS_PROVED);
	if (!is_tcp(tp) || 1 << state & (TCPF_SYN_SENT | TCPF_LISTEN))
		return;
	if (!FIELD(u16, tp, OFFSET_skc_dport)) /* it has no peer */
		return;
	if (FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DEAD) /* counted to its end, and forgotten */
		return;
	if (!session_matches(tp))
		return;
	stand(&position, tp);
	if (phase() == COUNTING &&
	    (FIELD(u64, tp, OFFSET_bytes_sent) || position.copied_seq != first_received(tp)))
		count(EVENTS_MISSED);
	remember(tp, &position);
}

/*
 * Whether the position of a socket is that of its present connection and can be gone on with;
 * the caller has the socket's lock.
 */
static __always_inline bool up_to_date(void *tp, struct position *position, u8 state)
{
	u32 connection = connection_of(tp);

	if (position->stage == NOTED) {
		position->connection = connection;
		position->stage = KNOWN;
	} else if (position->stage == BEGUN) {
		if (state == TCP_SYN_SENT)
			return false;
		start(position, tp);
	} else if (position->connection != connection) {
		begin_anew(position);
		if (!FIELD(u16, tp, OFFSET_skc_dport)) { /* tcp_disconnect() has reset it */
			forget(tp);
			return false;
		}
		count(EVENTS_MISSED);
		stand(position, tp);
		position->connection = connection;
		return false;
	}
	return true;
}

/*
 * Count what was moved since the last look. The caller has the socket's lock; `user` tells
 * that the current task has it, and not a softirq that interrupts this task.
 */
static __always_inline void look(void *tp, struct position *position, bool user)
{
	u8 state = FIELD(u8, tp, OFFSET_skc_state);
	u64 interval = running();
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct share *share = &position->shares[interval & 1];
	u32 write_seq, copied_seq, tx, rx;
	struct session *row;
	bool wanted;

	if (!up_to_date(tp, position, state))
		return;
	if (position->special) {
		struct special *special = special_of(tp, position);

		if (special && user)
			note_user(special, pid, interval);
		return;
	}
	wanted = user && task_matches(pid);
	write_seq = FIELD(u32, tp, OFFSET_write_seq);
	copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	tx = position->send_closed ? 0 : write_seq - position->write_seq;
	rx = copied_seq - position->copied_seq;
	if (FIELD(u32, tp, OFFSET_urg_seq) != position->urgent_mark) {
		position->urgent_mark = FIELD(u32, tp, OFFSET_urg_seq);
		position->urgent = 1;
	}
	if (position->urgent)
		rx += urgent_bytes(tp, position, copied_seq);
	position->write_seq = write_seq;
	position->copied_seq = copied_seq;
	/* A FIN is the last to move either counter, by one, and is no byte. */
	if (tx && fin_queued(state))
		tx--;
	if (rx && state != TCP_ESTABLISHED &&
	    fin_read(FIELD(u64, tp, OFFSET_skc_flags), copied_seq, FIELD(u32, tp, OFFSET_rcv_nxt)))
		rx--;
	if (is_special(tp)) {
		struct special *special;

		make_special(tp, position);
		special = special_of(tp, position);
		if (special && user)
			note_user(special, pid, interval);
	}
	if (!(tx | rx) || (user && !wanted))
		return;
	if (!user) {
		/* A softirq is at the socket's very end: whoever used it last has moved this. */
		if (share->interval == interval) {
			share->rx_bytes += rx;
			share->tx_bytes += tx;
		} else {
			count(EVENTS_MISSED);
		}
		return;
	}
	struct session_key key = {
	    .socket = (u64)tp,
	    .connection = position->connection,
	    .pid = pid,
	};
	row = make_row(tp, &key, interval);
	if (!row) {
		count(EVENTS_MISSED);
		return;
	}
#ifdef HAVE_BTF
	if (share->interval != interval) {
		share->interval = interval;
		share->key = key;
		share->rx_bytes = 0;
		share->tx_bytes = 0;
		row->position = (u64)position;
	}
	if (share->key.pid == pid) {
		share->quick_pid = position->urgent || position->special ? 0 : pid;
		share->rx_bytes += rx;
		share->tx_bytes += tx;
		return;
	}
#endif
	row->rx_bytes += rx;
	row->tx_bytes += tx;
}

#if defined(CGROUP_ID) || defined(CGROUPMAP_FLAGS) || defined(MNTNSMAP_FLAGS)
#define STILL_MATCHES(pid) task_matches(pid)
#else
#define STILL_MATCHES(pid) true
#endif
/*
 * A socket's storage goes with it, and connect() and disconnect(), in its process, cannot be
 * missed; an address may still be known when another socket has it.
 */
#ifdef SOCKET_STORAGE
#define SAME_CONNECTION(position, tp) true
#else
#define SAME_CONNECTION(position, tp) (connection_of(tp) == (position)->connection)
#endif

/* The task has done what it wanted, or goes to sleep until it can go on. */
static __always_inline int at_release_sock(struct sock *sk)
{
	void *tp = TCP(sk);
	struct position *position;
	struct share *share;
	u64 interval;
	u32 pid, write_seq, copied_seq;

	if (!tp)
		return 0;
	position = position_of(tp);
	if (!position) {
		meet(tp);
		return 0;
	}
	/* The common case, in as few instructions as it takes: the same process goes on. */
	pid = bpf_get_current_pid_tgid() >> 32;
	interval = running();
	share = &position->shares[interval & 1];
	asm("" : "+r"(share)); /* or the compiler computes it again at every use */
	if (share->interval == interval && share->quick_pid == pid && STILL_MATCHES(pid) &&
	    FIELD(u8, tp, OFFSET_skc_state) == TCP_ESTABLISHED && SAME_CONNECTION(position, tp)) {
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
		return 0;
	}
	look(tp, position, true);
	return 0;
}

/* tcp_check_urg() has seen urgent data coming, and is about to set the mark. */
static __always_inline int at_sk_send_sigurg(struct sock *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;
	u32 copied_seq;

	if (!position)
		return 0;
	copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	/* It steps over the byte at the old mark, if the reader stands there. */
	if (FIELD(u16, tp, OFFSET_urg_data) && FIELD(u32, tp, OFFSET_urg_seq) == copied_seq &&
	    copied_seq != FIELD(u32, tp, OFFSET_rcv_nxt) &&
	    !(FIELD(u64, tp, OFFSET_skc_flags) & SOCK_URGINLINE))
		position->copied_seq++;
	position->urgent = 1;
	position->urgent_taken = 0;
	position->shares[0].quick_pid = 0;
	position->shares[1].quick_pid = 0;
	return 0;
}

/* Others are about to move bytes of this socket: its owner's next look is a closer one. */
static __always_inline int at_helper(struct sock *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;

	if (position) {
		position->shares[0].quick_pid = 0;
		position->shares[1].quick_pid = 0;
	}
	return 0;
}

/* Keep the totals of a special connection as of now, before its counters may be reset. */
static __always_inline void sum_up(void *tp, struct position *position)
{
	struct special *special = special_of(tp, position);
	struct tcp_counters now = READ_COUNTERS(FIELD, tp);

	if (!special || connection_of(tp) != position->connection)
		return;
	special->rx_total = taken(&now, special->rx_first);
	if (!special->send_closed)
		special->tx_total = sent(&now, special->tx_first);
}

/* No more will come of it. */
static __always_inline void end_special(void *tp, struct position *position)
{
	struct special *special = special_of(tp, position);

	if (special)
		special->over = 1;
}

/* A connection begins: connect() in its process, or the end of the handshake in a softirq. */
static __always_inline void begin(void *tp, bool connecting)
{
	struct position fresh = {.stage = BEGUN, .active = connecting};
	struct position *position = position_of(tp);

	if (phase() == PROVING)
		return;
	if (connecting) {
		if (position) {
			if (position->special)
				end_special(tp, position);
			begin_anew(position);
			position->stage = BEGUN;
			position->active = 1;
		} else {
			remember(tp, &fresh);
		}
		return;
	}
	if (!session_matches(tp)) {
		if (position)
			forget(tp);
		return;
	}
	if (!position)
		position = remember(tp, &fresh);
	if (!position || position->stage != BEGUN)
		return;
	/* TCP_REPAIR makes connections without a SYN. */
	if (position->active && !FIELD(u64, tp, OFFSET_bytes_acked))
		position->active = 0;
	start(position, tp);
	if (is_special(tp))
		make_special(tp, position);
}

/* Whether the current task owns the socket's lock; a softirq only holds the lock's spin lock. */
static __always_inline bool owned(void *tp)
{
	return FIELD(int, tp, OFFSET_owned);
}

/*
 * inet_sk_set_state() and tcp_set_state(), before they set it. close() always comes here
 * with the lock, be it with the state that there is, unless the socket is in CLOSE already.
 */
static __always_inline int at_inet_sock_set_state(struct sock *sk, u8 to)
{
	void *tp = TCP(sk);
	struct position *position;

	if (!tp || !is_tcp(tp))
		return 0;
	if (to == TCP_SYN_SENT || to == TCP_ESTABLISHED) {
		begin(tp, to == TCP_SYN_SENT);
		return 0;
	}
	position = position_of(tp);
	if (!position || !owned(tp) || to == TCP_SYN_RECV) /* two SYNs have met: it still begins */
		return 0;
	if (position->stage == BEGUN)
		start(position, tp);
	look(tp, position, true);
	if (position->special) {
		struct special *special = special_of(tp, position);

		sum_up(tp, position);
		if (special && fin_queued(to))
			special->send_closed = 1;
	}
	if (fin_queued(to))
		position->send_closed = 1;
	return 0;
}

/* The very end: close() of a socket in CLOSE, or what came later of one that was closed. */
static __always_inline int at_tcp_destroy_sock(struct sock *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;

	if (!position)
		return 0;
	look(tp, position, owned(tp));
	if (position->special) {
		sum_up(tp, position);
		end_special(tp, position);
	}
	settle(position);
#ifndef SOCKET_STORAGE /* which goes with the socket */
	forget(tp);
#endif
	return 0;
}

/* Functions of the kernel whose first argument is the socket, at their entry; tracepoints. */
#ifdef PROBE_FENTRY
#define PROBE(function, action)                                                                    \
	KFUNC_PROBE(function, struct sock *sk)                                                     \
	{                                                                                          \
		return action(sk);                                                                 \
	}
#define TRACEPOINT(name, arguments)                                                                \
	int name(u64 *argument)                                                                    \
	{                                                                                          \
		return at_##name arguments;                                                        \
	}
#define ARGUMENT(type, number) ((type)argument[number])
#else
#define PROBE(function, action)                                                                    \
	int kprobe__##function(struct pt_regs *ctx)                                                \
	{                                                                                          \
		return action((struct sock *)PT_REGS_PARM1(ctx));                                  \
	}
#define TRACEPOINT(name, arguments)                                                                \
	RAW_TRACEPOINT_PROBE(name)                                                                 \
	{                                                                                          \
		return at_##name arguments;                                                        \
	}
#define ARGUMENT(type, number) ((type)ctx->args[number])
#endif
/* bcc 0.18 puts a function's section in front of the macro, so each makes one function. */
PROBE(release_sock, at_release_sock)
PROBE(sk_send_sigurg, at_sk_send_sigurg)
#ifdef HAVE_tcp_set_ulp
PROBE(tcp_set_ulp, at_helper)
#endif
#ifdef HAVE_sk_psock_init
PROBE(sk_psock_init, at_helper)
#endif
TRACEPOINT(inet_sock_set_state, (ARGUMENT(struct sock *, 0), ARGUMENT(u64, 2)))
TRACEPOINT(tcp_destroy_sock, (ARGUMENT(struct sock *, 0)))

#ifdef HAVE_BTF
/*
 * Iterators; their arguments are those of struct bpf_iter__tcp and so on. They run in the
 * task that reads from them.
 */
struct meta {
	void *seq;
};

struct file_iteration {
	struct meta *meta;
	void *task;
	u32 fd;
	void *file;
};

struct tcp_iteration {
	struct meta *meta;
	struct sock *sk;
};

struct map_iteration {
	struct meta *meta;
	void *map;
	void *key;
	void *value;
};

static void *(*socket_of)(void *file) = (void *)162; /* bpf_sock_from_file(), Linux 5.11 */

/* Once at the start: only what comes is counted. */
static __always_inline int note(void *sk)
{
	void *tp = (void *)bpf_skc_to_tcp_sock(sk);

	if (tp && !position_of(tp))
		meet(tp);
	return 0;
}

/* Every open file. No lock is taken, so that nobody who sleeps with one can hold this up. */
int note_file(struct file_iteration *at)
{
	void *file = at->file;
	void *socket = file ? socket_of(file) : 0;

	return socket ? note(*(void **)(socket + OFFSET_sk)) : 0;
}

/* Every TCP socket of a network namespace, under its lock. */
int note_socket(struct tcp_iteration *at)
{
	void *sk = at->sk;

	return sk ? note(sk) : 0;
}

/* Every row of the interval that is over. */
int emit_row(struct map_iteration *at)
{
	void *seq = at->meta->seq;
	struct session_key *key = at->key;
	struct session *row = at->value;
	u32 over = running() - 1;
	struct record record = {};
	struct share share = {};
	u64 position;

	if (!key || !row)
		return 0;
	record.key = *key;
	record.identity = row->identity;
	position = row->position;
	if (position)
		bpf_probe_read_kernel(&share, sizeof(share),
				      (void *)position + (over & 1) * sizeof(share));
	/* What lies there may be another's by now, and then the row has been settled. */
	if (position && row->position == position && share.interval == over &&
	    share.key.socket == record.key.socket &&
	    share.key.connection == record.key.connection && share.key.pid == record.key.pid) {
		record.rx_bytes = share.rx_bytes;
		record.tx_bytes = share.tx_bytes;
	} else {
		record.rx_bytes = row->rx_bytes;
		record.tx_bytes = row->tx_bytes;
	}
	bpf_seq_write(seq, &record, sizeof(record));
	return 0;
}

/* What has been moved on every special connection since the last time. */
int emit_special(struct map_iteration *at)
{
	void *seq = at->meta->seq;
	struct session_key *found = at->key;
	struct special *special;
	struct record record = {};
	u64 rx, tx;

	if (!found)
		return 0;
	record.key = *found;
	special = specials.lookup(&record.key);
	if (!special)
		return 0;
	/* First: what the totals say is final then. */
	record.over = special->over;
	rx = special->rx_total;
	tx = special->tx_total;
	if (!record.over) {
		void *tp = (void *)record.key.socket;
		struct tcp_counters now = READ_COUNTERS(FETCH, tp);

		/* It is not itself while it is changed, or gone with its last notice yet to come.
		 */
		if (now.snd_una - (u32)now.bytes_acked == record.key.connection) {
			rx = taken(&now, special->rx_first);
			if (!special->send_closed)
				tx = sent(&now, special->tx_first);
		}
	}
	if ((s64)(rx - special->rx_bytes) < 0)
		rx = special->rx_bytes;
	if ((s64)(tx - special->tx_bytes) < 0)
		tx = special->tx_bytes;
	if (special->wanted) {
		record.rx_bytes = rx - special->rx_bytes;
		record.tx_bytes = tx - special->tx_bytes;
	}
	record.identity = special->who;
	if (!record.over && !record.rx_bytes && !record.tx_bytes && special->wanted)
		return 0;
	/* If there was no room for it, this is called for the same again. */
	if (!bpf_seq_write(seq, &record, sizeof(record))) {
		special->rx_bytes = rx;
		special->tx_bytes = tx;
	}
	return 0;
}
#endif
