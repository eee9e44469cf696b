// SPDX-License-Identifier: Apache-2.0
/*
 * Report what was moved over each TCP session, without a probe where data flow.
 *
 * TCP keeps totals of each socket. At each output an iterator goes through the sockets of a
 * network namespace, each with its lock held (bpf_iter_tcp_seq_show(), net/ipv4/tcp_ipv4.c), and
 * writes a record for those that have moved bytes since their last record. What a session has
 * moved by its end is told by the tracepoints sock:inet_sock_set_state and tcp:tcp_destroy_sock,
 * which are called with the counters as they were. A byte is in a record of the one or the other,
 * whichever looked first.
 *
 * All records go to a ring buffer: where an iterator writes more than 32 KiB to its own file, the
 * next read(2) goes on at a number within a bucket of the hash table (tcp_seek_last_pos(),
 * net/ipv4/tcp_ipv4.c), whose sockets may be others by then.
 *
 * Whose a session is: of the process that connected or accepted it or, if it was open at the
 * start, of the first that was found to have it.
 *
 * All looks are at totals of 64 bits, with the socket held still, so that to look twice, or after
 * 4 GiB, is no mistake. A total is never taken for less than it was.
 *
 * Read by Python, which puts common.h, iter.h and socket.h in front.
 */

/* include/net/tcp.h, and include/linux/socket.h */
#define TCP_URG_VALID 0x0100
#define MSG_PEEK 2

static __always_inline void note_namespace(void *tp)
{
	u32 inode = FETCH(u32, FIELD(void *, tp, OFFSET_skc_net), OFFSET_net_inum);

	if (!namespaces.lookup(&inode))
		count(namespaces.update(&inode, &inode) ? EVENTS_MISSED : NAMESPACES_MADE);
}

/* The session is the current process'. */
static __always_inline void own(struct position *position)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	name_process(&position->owner, pid);
	position->wanted = task_matches(pid);
}

static __always_inline bool is_wanted(void *tp, struct position *position)
{
	return (position->owner.pid ? position->wanted : nobody_matches()) && session_matches(tp);
}

/* The bytes that were read of all that a connection has received. */
static __always_inline u64 rx_total(struct tcp_counters *at)
{
	bool fin = fin_read(at->flags, at->copied_seq, at->rcv_nxt) ||
		   (is_ahead(at) && at->flags & SOCK_DONE);

	return at->bytes_received - unread(at) - fin;
}

/* A session's totals. */
struct totals {
	u64 rx;
	u64 tx;
	u32 copied_seq;
	u32 write_seq;
};

/*
 * Whether more was moved on the present connection than was reported; the caller has the socket's
 * lock, or a softirq has its spin lock.
 */
static __always_inline bool look(void *tp, struct position *position, struct totals *now)
{
	struct tcp_counters at = READ_COUNTERS(FIELD, tp);
	u32 connection = at.snd_una - (u32)at.bytes_acked;
	bool read_fin = fin_read(at.flags, at.copied_seq, at.rcv_nxt);
	bool sent_fin = fin_queued(at.state);
	u32 rx, tx;

	/* tcp_disconnect() takes the peer away, and then changes sequence numbers. */
	if (at.state == TCP_SYN_SENT || !FIELD(u16, tp, OFFSET_skc_dport))
		return false;
	now->copied_seq = at.copied_seq;
	now->write_seq = at.write_seq;
	now->rx = rx_total(&at);
	now->tx = at.bytes_acked + (u32)(at.write_seq - at.snd_una) - position->active - sent_fin;
	if (position->stage == BEGUN) {
		position->copied_seq = at.rcv_nxt - (u32)at.bytes_received;
	} else if (position->stage == NOTED) {
		rx = at.copied_seq - position->copied_seq;
		tx = at.write_seq - position->write_seq;
		position->rx_bytes = now->rx - (rx - (rx && read_fin));
		position->tx_bytes = now->tx - (tx - (tx && sent_fin));
	} else if (position->connection != connection) { /* its beginning was skipped */
		count(EVENTS_MISSED);
		position->rx_bytes = now->rx;
		position->tx_bytes = now->tx;
		position->urgent_bytes = 0;
		position->send_closed = 0;
		start_reading(tp, position);
	}
	position->connection = connection;
	position->stage = KNOWN;
	position->urgent_bytes += urgent_bytes(tp, position, at.copied_seq);
	now->rx += position->urgent_bytes;
	if (position->send_closed)
		now->tx = position->tx_bytes;
	if ((s64)(now->rx - position->rx_bytes) < 0)
		now->rx = position->rx_bytes;
	if ((s64)(now->tx - position->tx_bytes) < 0)
		now->tx = position->tx_bytes;
	if (at.state == TCP_CLOSE && now->tx != position->tx_bytes) {
		/* Its end was skipped, and perhaps it has queued a FIN. */
		count(EVENTS_MISSED);
		now->tx--;
	}
	if (now->rx != position->rx_bytes || now->tx != position->tx_bytes)
		return true;
	/* It may have been no more than a FIN. */
	position->copied_seq = at.copied_seq;
	position->write_seq = at.write_seq;
	return false;
}

/* Report what is new, if it is wanted. Whether there was room. */
static __always_inline bool report(void *tp, struct position *position, struct totals *now)
{
	struct identity *owner = &position->owner;
	struct record *record;

	if (is_wanted(tp, position)) {
		record = moved.ringbuf_reserve(sizeof(*record));
		if (!record)
			return false;
		if (!owner->family)
			name_session(owner, tp);
		record->identity = *owner;
		if (!owner->pid)
			name_nobody(&record->identity);
		record->rx_bytes = now->rx - position->rx_bytes;
		record->tx_bytes = now->tx - position->tx_bytes;
		moved.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	position->rx_bytes = now->rx;
	position->tx_bytes = now->tx;
	position->copied_seq = now->copied_seq;
	position->write_seq = now->write_seq;
	return true;
}

/* The look at a session that ends. Whether what it found could be handed over. */
static __always_inline bool look_last(void *tp, struct position *position)
{
	struct totals now;

	if (!look(tp, position, &now))
		return true;
	/* Threads of the kernel close what nobody owned, but not as its users. */
	if (!position->owner.pid && is_owned(tp) &&
	    !(FETCH(u32, bpf_get_current_task(), OFFSET_flags) & PF_KTHREAD))
		own(position);
	if (!report(tp, position, &now)) {
		count(EVENTS_MISSED);
		return false;
	}
	return true;
}

/* connect() begins. */
static __always_inline void open(void *tp)
{
	struct position fresh = {.stage = BEGUN, .active = 1};

	start_reading(tp, &fresh);
	own(&fresh);
	forget(tp);
	remember(tp, &fresh);
	note_namespace(tp);
}

/* The handshake is over: somebody else has connected, or this side had before the start. */
static __always_inline struct position *establish(void *tp, u8 from)
{
	struct position fresh = {.stage = BEGUN, .active = from == TCP_SYN_SENT};

	start_reading(tp, &fresh);
	note_namespace(tp);
	return remember(tp, &fresh);
}

/* It was under way at the start, perhaps with data in its SYN (TCP_FASTOPEN). */
static __always_inline void stand(void *tp, struct position *position)
{
	position->stage = NOTED;
	position->write_seq = FIELD(u32, tp, OFFSET_write_seq);
	position->copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	if (setting(PHASE) == COUNTING && has_moved(tp))
		count(EVENTS_MISSED);
}

/*
 * inet_sk_set_state() and tcp_set_state(), before they set it. connect() comes here, and
 * close(), be it with the state that there is, unless the socket is in CLOSE already.
 */
static __always_inline int at_change(void *sk, u8 from, u8 to, bool again)
{
	void *tp = TCP(sk);
	struct position *position;

	if (!tp || !is_tcp(tp) || to == TCP_SYN_RECV)
		return 0;
	position = position_of(tp);
	if (to == TCP_SYN_SENT) {
		if (!again || !position || position->stage != BEGUN)
			open(tp);
	} else if (to == TCP_ESTABLISHED) {
		if (!position) {
			position = establish(tp, from);
			if (position && (has_moved(tp) || FIELD(u64, tp, OFFSET_bytes_acked)))
				stand(tp, position);
		}
		if (position && position->active && !FIELD(u64, tp, OFFSET_bytes_acked))
			position->active = 0; /* TCP_REPAIR makes connections without a SYN */
	} else if (position && (to == TCP_CLOSE || is_owned(tp))) {
		if (from == TCP_SYN_SENT) {
			/*
			 * The SYN may have had data (TCP_FASTOPEN) that nobody acknowledged, or
			 * there are no sequence numbers (inet_hash_connect() has failed): not to be
			 * told.
			 */
			if (FIELD(u32, tp, OFFSET_write_seq) - FIELD(u32, tp, OFFSET_snd_una) > 1)
				count(EVENTS_MISSED);
			position->send_closed = 1;
		} else if (look_last(tp, position)) {
			position->send_closed |= to == TCP_CLOSE || fin_queued(to);
		}
	}
	return 0;
}

/* The very end: close() of a socket in CLOSE, or what came later of one that was closed. */
static __always_inline int at_tcp_destroy_sock(void *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;

	if (!tp)
		return 0;
	if (position)
		look_last(tp, position);
	else if (FIELD(u16, tp, OFFSET_skc_dport) && was_overlooked(tp))
		count(EVENTS_MISSED);
	return 0;
}

/* accept(2) gives the socket to its process (sock_graft(), include/net/sock.h). */
static __always_inline int at_graft(void *sk)
{
	void *tp = TCP(sk);
	struct position *position;

	count(LOOKS_PROVED);
	if (!tp || !is_tcp(tp))
		return 0;
	position = position_of(tp);
	if (!position)
		position = establish(tp, TCP_SYN_RECV);
	if (position)
		own(position);
	return 0;
}

/* tcp_check_urg() has seen urgent data coming, and is about to set the mark. */
static __always_inline int at_sk_send_sigurg(void *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;
	u32 copied_seq;

	if (!position)
		return 0;
	copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	if (position->stage == BEGUN)
		position->copied_seq = first_received(tp);
	position->urgent_bytes += urgent_bytes(tp, position, copied_seq);
	if (skips_old_mark(tp, copied_seq))
		position->urgent_bytes--;
	expect_urgent(tp, position, COMING);
	return 0;
}

#ifdef HAVE_tcp_recv_urg
/*
 * recv(MSG_OOB), which leaves no trace once reading has passed the mark:
 * tcp_recv_urg(sk, msg, len, flags), net/ipv4/tcp.c, under these conditions.
 */
int entry__tcp_recv_urg(u64 *argument)
{
	void *tp = TCP((void *)argument[0]);
	struct position *position = tp ? position_of(tp) : 0;
	u64 flags;

	if (!position || argument[3] & MSG_PEEK)
		return 0;
	flags = FIELD(u64, tp, OFFSET_skc_flags);
	if (flags & SOCK_URGINLINE || !(FIELD(u16, tp, OFFSET_urg_data) & TCP_URG_VALID))
		return 0;
	if (FIELD(u8, tp, OFFSET_skc_state) == TCP_CLOSE && !(flags & SOCK_DONE))
		return 0;
	if (!position->urgent_taken) {
		position->urgent_taken = 1;
		position->urgent_bytes++;
	}
	return 0;
}
#endif

/* connect() to AF_UNSPEC: what was read since a reset is not seen any more afterwards. */
static __always_inline int at_tcp_disconnect(void *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;

	if (position)
		look_last(tp, position);
	return 0;
}

ENTRY(security_sock_graft, at_graft)
ENTRY(tcp_disconnect, at_tcp_disconnect)
ENTRY(sk_send_sigurg, at_sk_send_sigurg)
#define CHANGE ARGUMENT(0), (u64)ARGUMENT(1), (u64)ARGUMENT(2)
TRACEPOINT(event, inet_sock_set_state, at_change(CHANGE, false))
TRACEPOINT(event, tcp_destroy_sock, at_tcp_destroy_sock(ARGUMENT(0)))
/*
 * A program is skipped where it interrupts itself on that CPU, but then these are not: an accepted
 * connection begins in a softirq. Since Linux 7.0 programs are preempted, too, and skip whatever
 * comes then.
 */
#ifdef TRACEPOINTS_PREEMPTED
TRACEPOINT(again, inet_sock_set_state, at_change(CHANGE, true))
TRACEPOINT(again, tcp_destroy_sock, at_tcp_destroy_sock(ARGUMENT(0)))
#else
TRACEPOINT(again, inet_sock_set_state,
	   (u64)ARGUMENT(2) == TCP_ESTABLISHED ? at_change(CHANGE, true) : 0)
#endif

/* A socket of which no beginning was seen: it is counted from where it stands. */
static __always_inline struct position *meet(void *tp)
{
	u8 state = FIELD(u8, tp, OFFSET_skc_state);
	struct position noted = {.stage = NOTED};
	struct position *position;

	start_reading(tp, &noted);
	noted.write_seq = FIELD(u32, tp, OFFSET_write_seq);
	if (!is_tcp(tp) || 1 << state & (TCPF_SYN_SENT | 1 << TCP_SYN_RECV | TCPF_LISTEN))
		return 0;
	if (!FIELD(u16, tp, OFFSET_skc_dport)) /* it has no peer */
		return 0;
	if (FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DEAD) /* nobody moves anything any more */
		return 0;
	if (!session_matches(tp))
		return 0;
	if (state == TCP_CLOSE) { /* TCP_QUEUE_SEQ may set its sequence numbers, but no totals */
		struct tcp_counters now = READ_COUNTERS(FIELD, tp);

		noted.stage = KNOWN;
		noted.connection = now.snd_una - (u32)now.bytes_acked;
		noted.send_closed = 1;
		noted.rx_bytes = rx_total(&now);
	}
	note_namespace(tp);
	position = remember(tp, &noted);
	if (position && setting(PHASE) == COUNTING && has_moved(tp))
		count(EVENTS_MISSED);
	return position;
}

/* Once at the start, every open file: whose sockets there are. No lock is taken. */
int note_file(struct file_iteration *at)
{
	void *file = at->file, *task = at->task;
	void *socket = file ? socket_of(file) : 0;
	void *tp = socket ? TCP(*(void **)(socket + OFFSET_sk)) : 0;
	struct position *position;
	u32 pid;

	if (!tp || !task)
		return 0;
	position = position_of(tp);
	if (!position)
		position = meet(tp);
	if (position && !position->owner.pid) {
		pid = FETCH(u32, task, OFFSET_tgid);
		name_other(&position->owner, task, pid);
		position->wanted = other_matches(task, pid);
	}
	return 0;
}

/* At each output, every TCP socket of a network namespace, under its lock. */
int emit_socket(struct tcp_iteration *at)
{
	void *sk = at->sk;
	void *tp = sk ? TCP(sk) : 0;
	struct position *position;
	struct totals now;

	if (!tp)
		return 0;
	position = position_of(tp);
	if (!position)
		position = meet(tp);
	if (!position)
		return 0;
	count(SOCKETS_SEEN);
	if (position->stage == KNOWN && !position->urgent &&
	    position->copied_seq == FIELD(u32, tp, OFFSET_copied_seq) &&
	    position->write_seq == FIELD(u32, tp, OFFSET_write_seq))
		return 0;
	/* Without room, it is with a later output. */
	if (look(tp, position, &now) && !report(tp, position, &now))
		count(EVENTS_MISSED);
	return 0;
}
