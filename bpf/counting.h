// SPDX-License-Identifier: Apache-2.0
/* How tcptop's programs look at a socket; the programs themselves are in tcptop.c. */

/* What even the shortest look has to read. */
struct glance {
	u32 copied_seq;
	u32 rcv_nxt;
	u32 connection;
};

/*
 * The connection is not asked for where positions are in socket storage: that goes with its
 * socket, and that a process connects or disconnects the socket is never missed, as it happens
 * in no softirq; but for a socket in CLOSE, which always gets a closer look (note_close()). But an
 * address may still be known when another socket has it.
 */
#if defined(SOCKET_STORAGE) && !defined(TRACEPOINTS_PREEMPTED)
#define GLANCE_CONNECTION(tp) 0
#define IS_SAME_CONNECTION(glance, position) true
#else
#define GLANCE_CONNECTION(tp) connection_of(tp)
#define IS_SAME_CONNECTION(glance, position) ((glance).connection == (position)->connection)
#endif

/* Up to Linux 6.7 these fields are neighbours, and one read of all costs as one of each. */
#define AT(field) ((long)(OFFSET_##field) - (long)(OFFSET_rcv_nxt))
#define BLOCK 64
#define IN_BLOCK(field) (AT(field) >= 0 && AT(field) <= BLOCK - 8)

static __always_inline struct glance glance_at(void *tp)
{
	struct glance glance = {};

#ifndef KNOWS_TYPES
	if (IN_BLOCK(copied_seq) && IN_BLOCK(snd_una) && IN_BLOCK(bytes_acked)) {
		enum {
			SIZE = AT(snd_una) + 4 > AT(bytes_acked) + 8 ? AT(snd_una) + 4
								     : AT(bytes_acked) + 8
		};
		u64 block[BLOCK / 8];
		void *start = block;

		if (bpf_probe_read_kernel(block, SIZE, tp + OFFSET_rcv_nxt))
			return glance;
		glance.rcv_nxt = *(u32 *)start;
		glance.copied_seq = *(u32 *)(start + AT(copied_seq));
		glance.connection =
		    *(u32 *)(start + AT(snd_una)) - (u32) * (u64 *)(start + AT(bytes_acked));
		return glance;
	}
#endif
	glance.copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	glance.rcv_nxt = FIELD(u32, tp, OFFSET_rcv_nxt);
	glance.connection = GLANCE_CONNECTION(tp);
	return glance;
}

/* Whether the last that moved copied_seq may be the peer's FIN, which is no byte. */
static __always_inline bool may_be_fin(void *tp, struct glance *now)
{
#ifdef KNOWS_TYPES /* rcv_nxt is not read before it is asked for, which it hardly ever is */
	return FIELD(u8, tp, OFFSET_skc_state) != TCP_ESTABLISHED &&
	       now->copied_seq == now->rcv_nxt;
#else
	return now->copied_seq == now->rcv_nxt &&
	       FIELD(u8, tp, OFFSET_skc_state) != TCP_ESTABLISHED;
#endif
}

/* What was moved before is not counted. */
static __always_inline void stand(struct position *position, void *tp)
{
	start_reading(tp, position);
	position->write_seq = FIELD(u32, tp, OFFSET_write_seq);
}

/* See struct session_key. */
static __always_inline u32 moment(void)
{
	return bpf_ktime_get_ns() >> 11;
}

/* Everything that this connection ever moves is counted. */
static __always_inline void start(struct position *position, void *tp)
{
	position->connection = connection_of(tp);
	position->write_seq = position->connection + position->active;
	position->copied_seq = first_received(tp);
	position->stage = KNOWN;
}

/* The number of the running interval. */
static __always_inline u64 running(void)
{
	return setting(INTERVAL);
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
	made = bpf_map_lookup_elem(rows, key);
	if (!made)
		count(EVENTS_MISSED);
	return made;
}

static __always_inline void add(struct session *row, u32 rx, u32 tx)
{
#ifdef PROBE_CLASSIC /* a call that returns has no lock */
	if (rx)
		__sync_fetch_and_add(&row->rx_bytes, rx);
	if (tx)
		__sync_fetch_and_add(&row->tx_bytes, tx);
#else
	row->rx_bytes += rx;
	row->tx_bytes += tx;
#endif
}

/*
 * Put what the shares of a position hold into their rows. User space may still be at the last
 * interval.
 */
static __always_inline void settle(struct position *position)
{
#ifdef HAVE_SHARES
	u32 last = running() - 1;

#pragma clang loop unroll(disable)
	for (int parity = 0; parity < 2; parity++) {
		struct share *share = &position->shares[parity];
		struct session_key key = share->key; /* what a map is asked for is on the stack */
		struct session *row;
		void *rows = rows_of(parity);

		if (!rows || !share->interval || share->interval < last)
			continue;
		row = bpf_map_lookup_elem(rows, &key);
		if (row) { /* else user space has taken it, after it had read the share */
			row->settled_rx = share->rx_bytes;
			row->settled_tx = share->tx_bytes;
			barrier();
			row->position = 0;
			barrier();
		}
		share->quick_pid = 0;
		share->interval = 0;
	}
#endif
}

/* Nothing is to be counted without a closer look. */
static __always_inline void look_closer(struct position *position)
{
	position->shares[0].quick_pid = 0;
	position->shares[1].quick_pid = 0;
}

/*
 * Whether this side's FIN may be in write_seq, without that its change of state was seen: a
 * preempted program of the tracepoint has all others skipped on its CPU, and a socket may be in
 * CLOSE by the time that its lock is given back (__tcp_close(), net/ipv4/tcp.c).
 */
static __always_inline bool fin_unseen(u8 state)
{
#ifdef TRACEPOINTS_PREEMPTED
	return state == TCP_CLOSE;
#else
	return false;
#endif
}

/*
 * The bytes that were taken and sent since a connection began. The counters may have moved
 * while they were read: the low half of each total is exact as of some moment, and the high
 * half is the nearest to what TCP's 64-bit counters say.
 */
static __always_inline u64 taken(struct tcp_counters *at, u32 first)
{
	u64 about = at->bytes_received - unread(at);
	u32 low = at->copied_seq - first - fin_read(at->flags, at->copied_seq, at->rcv_nxt);

	if (is_ahead(at))
		return about - !!(at->flags & SOCK_DONE);
	return about + (s32)(low - (u32)about);
}

static __always_inline u64 sent(struct tcp_counters *at, u32 first)
{
	u64 about = at->bytes_acked + (u32)(at->write_seq - at->snd_una);
	u32 low = at->write_seq - first - (fin_queued(at->state) || fin_unseen(at->state));

	return about + (s32)(low - (u32)about);
}

/* Whether others than its owner may move a socket's bytes, and an iterator can read its totals. */
static __always_inline bool is_special(void *tp)
{
#ifdef HAVE_BTF
	return FIELD(u64, tp, OFFSET_icsk_ulp_ops) || FIELD(u64, tp, OFFSET_sk_user_data);
#else
	return false;
#endif
}

/*
 * Totals do not tell whether the urgent byte will have been read, or jumped over, when copied_seq
 * has passed it: it is taken for the latter.
 */
static __always_inline void jump_over_urgent(struct special *special)
{
	special->rx_first++;
	count(EVENTS_MISSED);
}

/*
 * From now on a connection is counted by its totals, of which all up to now has been counted;
 * the caller has its lock.
 */
static __always_inline void make_special(void *tp, struct position *position)
{
	struct session_key key = {.socket = (u64)tp, .made = position->made};
	struct tcp_counters now = READ_COUNTERS(FIELD, tp);
	struct special special = {
	    .connection = position->connection,
	    .rx_first = first_received(tp),
	    .tx_first = position->connection + position->active,
	    .wanted = nobody_matches(),
	};

	special.rx_bytes = taken(&now, special.rx_first);
	special.tx_bytes = sent(&now, special.tx_first);
	if (position->urgent)
		jump_over_urgent(&special);
	name_session(&special.who, tp);
	name_nobody(&special.who);
	if (specials.update(&key, &special)) { /* no room, so it goes on as others do */
		count(EVENTS_MISSED);
		return;
	}
	count(SPECIALS_MADE);
	position->special = 1;
	look_closer(position);
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
	struct session_key key = {.socket = (u64)tp, .made = position->made};

	return specials.lookup(&key);
}

/* Keep the totals of a special connection as of now, before its counters may be reset. */
static __always_inline void sum_up(void *tp, struct position *position, bool send_closed, bool over)
{
	struct special *special = special_of(tp, position);
	struct tcp_counters now = READ_COUNTERS(FIELD, tp);

	if (!special)
		return;
	if (connection_of(tp) == position->connection && FIELD(u16, tp, OFFSET_skc_dport)) {
		if (!position->closed || now.rcv_nxt == position->last_received)
			special->rx_total = taken(&now, special->rx_first);
		if (!special->send_closed) {
			special->tx_total = sent(&now, special->tx_first);
			if (over && fin_unseen(now.state))
				count(EVENTS_MISSED);
		}
	}
	special->send_closed |= send_closed;
	special->over |= over;
}

/*
 * The connection of a position is over, and what the socket has now are not its counters; one that
 * is special has been summed up at its last change of state.
 */
static __always_inline void end_special(void *tp, struct position *position)
{
	struct special *special = position->special ? special_of(tp, position) : 0;

	if (special) {
		special->send_closed = 1;
		special->over = 1;
	}
}

/* Where write_seq stands without what is no byte after it, if that is known. */
static __always_inline u32 last_sent(struct position *position, u32 write_seq)
{
	/* Or the compiler has one instruction read from either, which the verifier refuses. */
	asm("" : "+r"(write_seq));
	return position->send_closed ? position->last_sent : write_seq;
}

/* What still moves write_seq is no byte. */
static __always_inline void close_sending(void *tp, struct position *position)
{
	if (!position->send_closed)
		position->last_sent = FIELD(u32, tp, OFFSET_write_seq);
	position->send_closed = 1;
	look_closer(position);
}

/*
 * The socket comes to CLOSE, perhaps by a reset in a softirq, while nobody uses it: nothing more
 * is sent or comes. What a process does with it then changes no state any more, but numbers:
 * tcp_disconnect(), TCP_QUEUE_SEQ.
 */
static __always_inline void note_close(void *tp, struct position *position)
{
	close_sending(tp, position);
	if (!position->closed)
		position->last_received = FIELD(u32, tp, OFFSET_rcv_nxt);
	position->closed = 1;
}

/* Bytes that were moved since the last look. */
struct movement {
	u32 rx;
	u32 tx;
};

static __always_inline struct movement movement_of(void *tp, struct position *position)
{
	u8 state = FIELD(u8, tp, OFFSET_skc_state);
	u32 write_seq = last_sent(position, FIELD(u32, tp, OFFSET_write_seq));
	u32 copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
#ifdef PROBE_CLASSIC
	/* Who is in a call that sends adds what it has sent himself, see end_sending(). */
	u64 sends = *(volatile u64 *)&position->sending;
#else
	u64 sends = (u64)position->write_seq << 32;
#endif
	bool sending = (u32)sends;
	struct movement moved = {
	    .rx = copied_seq - position->copied_seq,
	    .tx = sending ? 0 : write_seq - (u32)(sends >> 32),
	};

	if (position->closed) {
		u32 rcv_nxt = FIELD(u32, tp, OFFSET_rcv_nxt);

		/* TCP_QUEUE_SEQ: only of a socket in CLOSE can it change a counter. */
		if (rcv_nxt != position->last_received) {
			moved.rx = 0;
			position->urgent = 0;
			position->urgent_mark = FIELD(u32, tp, OFFSET_urg_seq);
		}
		position->last_received = rcv_nxt;
	}
	moved.rx += urgent_bytes(tp, position, copied_seq);
	if (!sending)
		position->write_seq = write_seq;
	position->copied_seq = copied_seq;
	if ((s32)moved.tx < 0) { /* more than 2 GiB, or nobody knows */
		count(EVENTS_MISSED);
		moved.tx = 0;
	}
	/* A FIN is the last to move either counter, by one, and is no byte. */
	if (moved.tx && !position->send_closed && (fin_queued(state) || fin_unseen(state))) {
		moved.tx--;
		if (moved.tx && fin_unseen(state))
			count(EVENTS_MISSED); /* or it was reset, and that was a byte */
	}
	if (moved.rx && state != TCP_ESTABLISHED &&
	    fin_read(FIELD(u64, tp, OFFSET_skc_flags), copied_seq, FIELD(u32, tp, OFFSET_rcv_nxt)))
		moved.rx--;
	if (state == TCP_CLOSE)
		note_close(tp, position);
	return moved;
}

/*
 * A connection of which no beginning was seen: it is counted from where it stands. That is
 * its beginning, mostly: connect() and accept() are looked at, too.
 */
static __always_inline void meet(void *tp)
{
	u8 state = FIELD(u8, tp, OFFSET_skc_state);
	struct position position = {.stage = NOTED};
	u64 phase = setting(PHASE);

	/* Its end may come before the programs that see ends are attached, and another socket then
	 * have its address. */
	if (phase == PROVING) {
		count(LOOKS_PROVED);
		return;
	}
	if (!is_tcp(tp) || 1 << state & (TCPF_SYN_SENT | TCPF_LISTEN))
		return;
	if (!FIELD(u16, tp, OFFSET_skc_dport)) /* it has no peer */
		return;
	if (FIELD(u64, tp, OFFSET_skc_flags) & SOCK_DEAD) /* counted to its end, and forgotten */
		return;
	if (!session_matches(tp))
		return;
	position.made = moment();
	position.connection = connection_of(tp);
	barrier();
	if (position.connection != connection_of(tp)) /* an ACK came between, without the lock */
		position.connection = connection_of(tp);
	stand(&position, tp);
	if (state == TCP_CLOSE)
		note_close(tp, &position);
	if (remember(tp, &position) && phase == COUNTING && has_moved(tp))
		count(EVENTS_MISSED);
}

/*
 * Whether a position is that of the present connection of its socket, of which more is known
 * after the call; the caller has the socket's lock.
 */
static __always_inline bool is_current(void *tp, struct position *position)
{
	/* tcp_disconnect() takes the peer away, and then changes sequence numbers. */
	if (!FIELD(u16, tp, OFFSET_skc_dport))
		return false;
	if (position->stage == BEGUN)
		start(position, tp);
	position->stage = KNOWN;
	return position->connection == connection_of(tp);
}

/* A closer look at a socket in use, whose lock the current task has. */
static __always_inline void look(void *tp, struct position *position, u32 pid, u64 interval,
				 struct share *share)
{
	bool wanted = task_matches(pid);
	bool was_special = position->special;
	struct movement moved = {};
	struct session *row;
	struct session_key key = {.socket = (u64)tp, .pid = pid};

	if (!was_special) {
		moved = movement_of(tp, position);
		if (is_special(tp) && !position->sending)
			make_special(tp, position);
	}
	if (position->special) {
		struct special *special = special_of(tp, position);

		/* With classic, a softirq that interrupts this task may be what reads: parsers of
		 * messages call tcp_read_sock() there. */
		if (special && is_owned(tp))
			note_user(special, pid, interval);
	}
	if (was_special) {
		if (position->closed) /* for tcp_disconnect() changes no state then */
			sum_up(tp, position, true, false);
		return;
	}
	key.made = position->made;
	if (!wanted || !(moved.tx | moved.rx))
		return;
	row = make_row(tp, &key, interval);
	if (!row)
		return;
#ifdef HAVE_SHARES
	if (share->interval != interval) {
		share->interval = interval;
		share->key = key;
		share->rx_bytes = 0;
		share->tx_bytes = 0;
		row->rx_bytes += row->settled_rx;
		row->tx_bytes += row->settled_tx;
		row->settled_rx = 0;
		row->settled_tx = 0;
		row->position = (u64)position;
	}
	if (share->key.pid == pid) {
		share->quick_pid =
		    position->urgent || position->send_closed || position->special ? 0 : pid;
		share->rx_bytes += moved.rx;
		share->tx_bytes += moved.tx;
		return;
	}
#endif
	add(row, moved.rx, moved.tx);
}

/*
 * The look of who closes a socket or shuts it down, and of who destroys it, both of which are
 * seen whatever else was missed. `owner` tells that the current task has the socket's lock, and
 * not a softirq that interrupts this task: then nobody knows whose the bytes are. The position is
 * that of the present connection.
 */
static __always_inline void look_last(void *tp, struct position *position, bool owner)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct session_key key = {.socket = (u64)tp, .pid = pid};
	struct movement moved;
	struct session *row;

	moved = movement_of(tp, position);
	if (!(moved.tx | moved.rx))
		return;
	if (!owner) {
		count(EVENTS_MISSED);
		return;
	}
	if (!task_matches(pid))
		return;
	key.made = position->made;
	row = make_row(tp, &key, running());
	if (row)
		add(row, moved.rx, moved.tx);
}

/*
 * Keep the position of a connection that begins. What is left at its address is another's, whose
 * entry could not be deleted: a softirq may have interrupted an update of the map on that CPU
 * (htab_lock_bucket(), kernel/bpf/hashtab.c), and so it is overwritten.
 */
static __always_inline void begin(void *tp, struct position *position, struct position *fresh)
{
	if (position && (position->stage == BEGUN || position->connection == connection_of(tp)))
		return;
	fresh->made = moment();
	start_reading(tp, fresh);
	if (position) {
		settle(position);
		end_special(tp, position);
		*position = *fresh;
	} else {
		remember(tp, fresh);
	}
}

/*
 * A connection has its sequence numbers: the handshake is over. If nothing is known of it,
 * connect() was before the start where it comes from SYN_SENT.
 */
static __always_inline void establish(void *tp, struct position *position, struct position *fresh)
{
	u32 write_seq, copied_seq;
	bool before;

	if (!session_matches(tp)) {
		if (position)
			forget(tp);
		return;
	}
	/* Both sides have opened it, this one before the start. */
	if (!position && FIELD(u64, tp, OFFSET_bytes_acked))
		fresh->active = 1;
	/* It was under way at the start, and its SYN may have had data. */
	before = fresh->active ? !position : position && position->stage == NOTED;
	begin(tp, position, fresh);
	position = position_of(tp);
	if (!position || position->stage != BEGUN)
		return;
	/* TCP_REPAIR makes connections without a SYN. */
	if (position->active && !FIELD(u64, tp, OFFSET_bytes_acked))
		position->active = 0;
	start(position, tp);
	if (before) {
		write_seq = position->write_seq;
		copied_seq = position->copied_seq;
		stand(position, tp);
		if (setting(PHASE) == COUNTING &&
		    (position->write_seq != write_seq || position->copied_seq != copied_seq))
			count(EVENTS_MISSED);
	}
	if (is_special(tp))
		make_special(tp, position);
}

/* A closer look at a socket whose lock the current task has, or that is met. */
static __always_inline int use(void *tp, struct position *position, u32 pid, u64 interval,
			       struct share *share)
{
	if (position->stage == BEGUN && FIELD(u8, tp, OFFSET_skc_state) == TCP_SYN_SENT)
		return 0;
	if (is_current(tp, position)) {
		look(tp, position, pid, interval, share);
		return 0;
	}
	settle(position);
	end_special(tp, position);
	forget(tp);
	if (FIELD(u16, tp, OFFSET_skc_dport)) /* else tcp_disconnect() has reset it */
		count(EVENTS_MISSED);
	meet(tp);
	return 0;
}
