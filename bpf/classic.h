// SPDX-License-Identifier: Apache-2.0
/*
 * The kind `classic`: what bcc's tcptop traces, tcp_sendmsg() and tcp_sendpage() with their returns
 * and tcp_cleanup_rbuf().
 *
 * The last is called with the socket's lock held, and everything is counted there as by the other
 * kinds. A send returns without the lock. So it does not look at the socket: it adds what it
 * returns, bytes of its own, to its row and to the position, while all others leave write_seq alone
 * as long as somebody is sending. That cannot be more than was sent: the row gets nothing that
 * write_seq has not moved beyond the position.
 *
 * A return that the kernel misses (there are more sleepers than it has kretprobe_instances) leaves
 * its bytes and its mark to the next send of that task, or to close(): nobody else sends then. They
 * come late.
 */
#ifdef PROBE_CLASSIC

/* The connection that a task is sending on; no socket if it is not. */
struct sender {
	u64 socket;
	u32 made; /* as in its position: another connection may have the same socket by now */
	u32 unused;
};

/* By pid_tgid; old ones make room. */
BPF_F_TABLE("lru_hash", u64, struct sender, senders, ANY_SIZE, 0);

/* The position of what a task is sending on, if that is still there. */
static __always_inline struct position *sending_on(struct sender *sender)
{
	struct position *position = position_of((void *)sender->socket);

	return position && position->made == sender->made ? position : 0;
}

/*
 * A call has ended that has sent so much, or its end was missed. Who looks meanwhile sees both
 * `sending` and the write_seq after it as they were, or both as they are: little end first.
 */
static __always_inline void end_sending(struct position *position, u32 sent)
{
	u64 change = (u64)sent << 32;

	if (position->sending)
		change--;
	__sync_fetch_and_add((u64 *)&position->sending, change);
}

static __always_inline int at_send(void *sk)
{
	u64 task = bpf_get_current_pid_tgid();
	struct sender fresh = {.socket = (u64)sk}, *sender = senders.lookup(&task);
	struct position *position;
	u32 write_seq;

	if (sender && sender->socket) {
		position = sending_on(sender);
		if (position) {
			end_sending(position, 0);
			/* Such bytes are counted in the end, as far as 32 bits tell how many. */
			write_seq = FIELD(u32, (void *)sender->socket, OFFSET_write_seq);
			if ((s32)(last_sent(position, write_seq) - position->write_seq) < 0)
				count(EVENTS_MISSED);
		}
		sender->socket = 0;
	}
	position = position_of(sk);
	if (!position) {
		meet(sk);
		position = position_of(sk);
	}
	/* Before the handshake is over, there is nothing to count from. A Fast Open may send
	 * already where what is left at its address is another's, see begin(). */
	if (!position || position->stage == BEGUN ||
	    (FIELD(u8, sk, OFFSET_skc_state) == TCP_SYN_RECV &&
	     position->connection != connection_of(sk)))
		return 0;
	fresh.made = position->made;
	if (sender)
		*sender = fresh;
	else if (senders.update(&task, &fresh))
		return 0;
	__sync_fetch_and_add(&position->sending, 1);
	return 0;
}

static __always_inline int at_sent(int sent)
{
	u64 task = bpf_get_current_pid_tgid();
	struct sender *sender = senders.lookup(&task);
	void *tp = sender ? (void *)sender->socket : 0;
	struct position *position = tp ? sending_on(sender) : 0;
	u32 pid = task >> 32;
	struct session_key key = {.socket = (u64)tp, .pid = pid};
	struct session *row;

	if (!tp)
		return 0;
	sender->socket = 0;
	if (!position)
		return 0;
	/* In TCP_REPAIR, a send may put bytes into the queue of those received. */
	if (sent < 0 || position->special ||
	    (u32)(last_sent(position, FIELD(u32, tp, OFFSET_write_seq)) - position->write_seq) <
		(u32)sent)
		sent = 0;
	key.made = position->made;
	row = sent && task_matches(pid) ? make_row(tp, &key, running()) : 0;
	if (row)
		add(row, 0, sent);
	end_sending(position, sent);
	return 0;
}

/*
 * Others are about to move bytes of this socket, whose lock the current task has, or a softirq its
 * spin lock: from now on its totals are read, as none of the functions above is called.
 */
static __always_inline int at_helper(void *tp)
{
	struct position *position = position_of(tp);
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u64 interval = running();
	struct special *special;
	struct movement moved;

	if (!position || position->special || position->stage == BEGUN || !is_current(tp, position))
		return 0;
	if (position->sending) {
		position->stage = NOTED; /* for a closer look the next time */
		return 0;
	}
	if (is_owned(tp)) {
		look(tp, position, pid, interval, position->shares);
	} else {
		moved = movement_of(tp, position);
		if (moved.rx | moved.tx)
			count(EVENTS_MISSED);
	}
	if (!position->special)
		make_special(tp, position);
	special = position->special && is_owned(tp) ? special_of(tp, position) : 0;
	if (special)
		note_user(special, pid, interval);
	return 0;
}

/* Somebody who has the socket's lock has read from it. */
static __always_inline int at_tcp_cleanup_rbuf(void *tp)
{
	struct position *position = position_of(tp);
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct session_key key = {.socket = (u64)tp, .pid = pid};
	struct session *row;
	struct glance now;

	if (!position) {
		meet(tp);
		return 0;
	}
	if (!is_owned(tp)) { /* a parser of messages in a softirq, or Multipath TCP */
#ifdef HAVE_BTF
		at_helper(tp);
#endif
		return 0;
	}
	now = glance_at(tp);
	/* The common case: neither a FIN nor anything else that calls for a closer look. */
	if (position->stage == KNOWN && !position->urgent && !position->special &&
	    IS_SAME_CONNECTION(now, position) &&
	    (now.copied_seq != now.rcv_nxt || FIELD(u8, tp, OFFSET_skc_state) == TCP_ESTABLISHED) &&
	    (position->sending || FIELD(u32, tp, OFFSET_write_seq) == position->write_seq)) {
		if (now.copied_seq == position->copied_seq)
			return 0;
		key.made = position->made;
		row = task_matches(pid) ? make_row(tp, &key, running()) : 0;
		if (row)
			add(row, now.copied_seq - position->copied_seq, 0);
		position->copied_seq = now.copied_seq;
		return 0;
	}
	return use(tp, position, pid, running(), position->shares);
}

/* No process has it any more, and so nobody is sending. */
static __always_inline int at_tcp_close(void *tp)
{
	struct position *position = position_of(tp);

	if (position)
		position->sending = 0;
	return 0;
}

/* What was sent is not seen any more afterwards. */
static __always_inline int at_tcp_disconnect(void *tp)
{
	struct position *position = position_of(tp);

	if (position && position->sending && position->stage != BEGUN &&
	    last_sent(position, FIELD(u32, tp, OFFSET_write_seq)) != position->write_seq)
		count(EVENTS_MISSED);
	if (position && position->special)
		sum_up(tp, position, true, false);
	return 0;
}

#endif
