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
 * begins and ends. Up to Linux 6.x they are called with preemption off and
 * skipped only inside themselves (__bpf_trace_run(), kernel/trace/bpf_trace.c),
 * that is in softirqs: an accepted connection begins in one, and so has a
 * second program to see it. Since 7.0 see TRACEPOINTS_PREEMPTED.
 *
 * A connection is told from the one that had the same socket or address before
 * by an id, see connection_of(). What is known of one is never applied to
 * another, and where a connection is met later than at its beginning, it is
 * counted from where it stands. So a number may come late or, if `missed` says
 * so, not at all; it is never too large.
 *
 * Read by Python, which puts the files of traffic.tool() in front, and these macros:
 *   SOCKET_STORAGE         positions live in the socket itself; otherwise in a hash
 *   TRACEPOINTS_PREEMPTED  programs of tracepoints run with preemption on
 *   HAVE_BTF               the kernel has BTF, and so iterators
 *   HAVE_function          the kernel has this function, or tracepoint
 *   UNITS                  the paths of cgroups are wanted
 */

#ifdef TASK_FILTER /* whose answer may have changed since the last look */
#define STILL_MATCHES(pid) task_matches(pid)
#else
#define STILL_MATCHES(pid) true
#endif

#ifndef PROBE_CLASSIC
/* The task has done what it wanted, or goes to sleep until it can go on. */
static __always_inline int at_release_sock(void *sk)
{
	void *tp = TCP(sk);
	struct position *position;
	struct share *share;
	struct glance now;
	u64 interval;
	u32 pid, write_seq;

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
	if (share->interval == interval && share->quick_pid == pid && STILL_MATCHES(pid)) {
		now = glance_at(tp);
		if (!IS_SAME_CONNECTION(now, position))
			goto closer;
		if (now.copied_seq != position->copied_seq) {
			if (may_be_fin(tp, &now))
				goto closer;
			share->rx_bytes += (u32)(now.copied_seq - position->copied_seq);
			position->copied_seq = now.copied_seq;
		}
		write_seq = FIELD(u32, tp, OFFSET_write_seq);
		if (write_seq != position->write_seq) {
#ifdef TRACEPOINTS_PREEMPTED
			/* Its movement ends with a FIN, perhaps, or tcp_disconnect(), and nobody
			 * may have seen the state change. */
			if (!(1 << FIELD(u8, tp, OFFSET_skc_state) & TCPF_SENDING))
				goto closer;
#endif
			share->tx_bytes += (u32)(write_seq - position->write_seq);
			position->write_seq = write_seq;
		}
		return 0;
	}
	if (!task_matches(pid) &&
	    !(position->stage | position->special | position->urgent | position->send_closed)) {
		now = glance_at(tp);
		if (IS_SAME_CONNECTION(now, position)) {
			/* It is not to be counted, nor by the next one to use the socket. */
			position->copied_seq = now.copied_seq;
			position->write_seq = FIELD(u32, tp, OFFSET_write_seq);
			return 0;
		}
	}
closer:
	return use(tp, position, pid, interval, share);
}

/* Others are about to move bytes of this socket. */
static __always_inline int at_helper(void *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;

	if (position)
		look_closer(position);
	return 0;
}
#endif

/* tcp_check_urg() has seen urgent data coming, and is about to set the mark. */
static __always_inline int at_sk_send_sigurg(void *sk)
{
	void *tp = TCP(sk);
	struct position *position = tp ? position_of(tp) : 0;
	struct special *special;
	u32 copied_seq;

	if (!position)
		return 0;
	if (position->stage == BEGUN)
		start(position, tp);
	copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	/* The next look counts from here; what became of the last urgent byte is not known then. */
	if (!position->special)
		position->copied_seq -= urgent_bytes(tp, position, copied_seq);
	if (skips_old_mark(tp, copied_seq))
		position->copied_seq++;
	expect_urgent(tp, position, COMING);
	look_closer(position);
	special = position->special ? special_of(tp, position) : 0;
	if (special)
		jump_over_urgent(special);
	return 0;
}

/*
 * inet_sk_set_state() and tcp_set_state(), before they set it. connect() comes here, and
 * close(), be it with the state that there is, unless the socket is in CLOSE already.
 */
static __always_inline int at_inet_sock_set_state(void *sk, u8 from, u8 to)
{
	void *tp = TCP(sk);
	struct position fresh = {.stage = BEGUN, .active = 1};
	struct position *position;
	bool begins = to == TCP_SYN_SENT, closes, owned;

	if (!tp || !is_tcp(tp) || setting(PHASE) == PROVING)
		return 0;
	position = position_of(tp);
	if (to == TCP_ESTABLISHED) {
		fresh.active = from == TCP_SYN_SENT;
		establish(tp, position, &fresh);
		return 0;
	}
	if (to == TCP_SYN_RECV) /* two SYNs have met, or a listener's socket is not filled in yet */
		return 0;
	if (position && position->stage == BEGUN && from == TCP_SYN_SENT && to == TCP_CLOSE) {
		/*
		 * connect() has failed, perhaps before there were sequence numbers
		 * (inet_hash_connect()). If its SYN had data, nobody acknowledged them.
		 */
		if (FIELD(u32, tp, OFFSET_write_seq) - FIELD(u32, tp, OFFSET_snd_una) > 1)
			count(EVENTS_MISSED);
		stand(position, tp);
		position->connection = connection_of(tp);
		position->stage = KNOWN;
		return 0;
	}
	if (begins && position && position->stage == BEGUN && position->active)
		return 0; /* nothing has been seen of it but this */
	owned = is_owned(tp);
	if (position && !begins && owned && FIELD(u16, tp, OFFSET_skc_dport) &&
	    !is_current(tp, position)) {
		settle(position);
		end_special(tp, position);
		forget(tp);
		position = 0;
	}
	if (!position && !begins && owned) {
		meet(tp); /* to have it missed if it has moved anything */
		position = position_of(tp);
	}
	/* In a softirq where shutdown() has waited for the end of the handshake, since May 2024. */
	closes = fin_queued(to) && (owned || !fin_queued(from));
	if (position && (begins || closes || owned || to == TCP_CLOSE)) {
		/* Where another connection begins, tcp_disconnect() has reset the counters. */
		if (position->special && begins)
			end_special(tp, position);
		else if (position->special)
			sum_up(tp, position, to == TCP_CLOSE || fin_queued(to), false);
		if (begins || owned)
			settle(position);
		if (!begins) {
			bool same = is_current(tp, position);

			if (owned && same && !position->special)
				look_last(tp, position, true);
			if (same && to == TCP_CLOSE)
				note_close(tp, position);
			else if (same && closes)
				close_sending(tp, position);
		}
	}
	if (begins) {
		if (position)
			forget(tp);
		fresh.made = moment();
		start_reading(tp, &fresh);
		remember(tp, &fresh);
	}
	return 0;
}

/*
 * A connection begins in a softirq, and is reset in one, which skips the program above if it
 * interrupts it on that CPU. This one is another program, and so is not skipped then.
 */
static __always_inline int at_softirq(void *sk, u8 from, u8 to)
{
	bool closes = fin_queued(to) && !fin_queued(from);
	void *tp = to == TCP_ESTABLISHED || to == TCP_CLOSE || closes ? TCP(sk) : 0;
	struct position fresh = {.stage = BEGUN, .active = from == TCP_SYN_SENT};
	struct position *position;

	if (!tp || !is_tcp(tp) || setting(PHASE) == PROVING)
		return 0;
	if (closes && is_owned(tp)) /* which interrupts no program */
		return 0;
	position = position_of(tp);
	if (to != TCP_ESTABLISHED) {
		if (!position || (position->stage == BEGUN && !closes) || !is_current(tp, position))
			return 0;
		if (position->special)
			sum_up(tp, position, true, false);
		if (closes)
			close_sending(tp, position);
		else
			note_close(tp, position);
	} else if (session_matches(tp)) {
		begin(tp, position, &fresh);
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
	if (position) {
		settle(position);
		position->sending = 0; /* with classic, should at_tcp_close() have been skipped */
	}
	if (position && position->special)
		sum_up(tp, position, true, true);
	else if (FIELD(u16, tp, OFFSET_skc_dport)) { /* tcp_disconnect() has not reset it */
		if (position && is_current(tp, position))
			look_last(tp, position, is_owned(tp));
		else if (is_owned(tp) && was_overlooked(tp))
			count(EVENTS_MISSED);
	}
#ifndef SOCKET_STORAGE /* which goes with the socket */
	if (position)
		forget(tp);
#endif
	return 0;
}

#if defined(UNITS) && defined(HAVE_cgroup_mkdir)
/* A cgroup has been made, and may be gone before user space looks. */
static __always_inline int at_cgroup_mkdir(void *cgroup, void *path)
{
	u64 id = FETCH(u64, FETCH(void *, cgroup, OFFSET_kn), OFFSET_id);
	struct cgroup_path made = {};

	if (FETCH(int, FETCH(void *, cgroup, OFFSET_root), OFFSET_hierarchy_id))
		return 0; /* of version 1, which has ids of its own */
	bpf_probe_read_kernel_str(made.text, sizeof(made.text), path);
	cgroup_paths.update(&id, &made);
	return 0;
}

TRACEPOINT(event, cgroup_mkdir, at_cgroup_mkdir(ARGUMENT(0), ARGUMENT(1)))
#endif
#ifdef PROBE_CLASSIC
ENTRY(tcp_sendmsg, at_send)
RETURN(tcp_sendmsg, at_sent)
#ifdef HAVE_tcp_sendpage
ENTRY(tcp_sendpage, at_send)
RETURN(tcp_sendpage, at_sent)
#endif
ENTRY(tcp_cleanup_rbuf, at_tcp_cleanup_rbuf)
ENTRY(tcp_close, at_tcp_close)
ENTRY(tcp_disconnect, at_tcp_disconnect)
#else
ENTRY(release_sock, at_release_sock)
#endif
ENTRY(sk_send_sigurg, at_sk_send_sigurg)
#ifdef HAVE_tcp_set_ulp
ENTRY(tcp_set_ulp, at_helper)
#endif
#ifdef HAVE_sk_psock_init
ENTRY(sk_psock_init, at_helper)
#endif
#define CHANGE ARGUMENT(0), (u64)ARGUMENT(1), (u64)ARGUMENT(2)
TRACEPOINT(event, inet_sock_set_state, at_inet_sock_set_state(CHANGE))
TRACEPOINT(event, tcp_destroy_sock, at_tcp_destroy_sock(ARGUMENT(0)))
/* Of what the first has done already, the second finds nothing left to do. */
#ifdef TRACEPOINTS_PREEMPTED
TRACEPOINT(again, inet_sock_set_state, at_inet_sock_set_state(CHANGE))
#else
TRACEPOINT(again, inet_sock_set_state, at_softirq(CHANGE))
#endif

#ifdef HAVE_BTF
/* Iterators. Once at the start: only what comes is counted. */
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

/* Every TCP socket of a network namespace. */
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
	barrier();
	if (position)
		bpf_probe_read_kernel(&share, sizeof(share),
				      (void *)position + (over & 1) * sizeof(share));
	barrier();
	/* What lies there may be another's by now, and then the share has been settled. */
	if (!position || share.interval != over || share.key.socket != record.key.socket ||
	    share.key.made != record.key.made || share.key.pid != record.key.pid) {
		share.rx_bytes = row->settled_rx;
		share.tx_bytes = row->settled_tx;
	}
	record.rx_bytes = row->rx_bytes + share.rx_bytes;
	record.tx_bytes = row->tx_bytes + share.tx_bytes;
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

		/*
		 * It is not itself while it is changed, as by tcp_disconnect(), which takes the
		 * peer away, or gone with its last notice yet to come. In CLOSE, what was dropped
		 * unread there looks as if it were read.
		 */
		barrier();
		if (now.snd_una - (u32)now.bytes_acked == special->connection &&
		    FETCH(u16, tp, OFFSET_skc_dport)) {
			if (now.state != TCP_CLOSE || now.copied_seq != now.rcv_nxt)
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
