// SPDX-License-Identifier: Apache-2.0
/* What TCP keeps of a socket, and how it is read: for all kinds of tcptop's programs. */

/* include/net/tcp.h: recv(MSG_OOB) has taken the urgent byte. */
#define TCP_URG_READ 0x0400
/* include/linux/net.h */
#define SOCK_STREAM 1

/*
 * TCP(sk): a pointer whose fields can be read, NULL if that is known to be no TCP
 * socket. is_tcp() is for sockets that are not known yet: bpf_skc_to_tcp_sock() takes raw
 * sockets of protocol 6 for TCP, and kprobes do not know at all.
 */
#ifdef KNOWS_TYPES
#define TCP(sk) ((void *)bpf_skc_to_tcp_sock(sk))
#else
#define TCP(sk) ((void *)(sk))
#endif

/* For the compiler; x86 keeps the order of stores, and of loads. */
#define barrier() asm volatile("" : : : "memory")

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

/* One of the counters that user space sets. */
static __always_inline u64 setting(u32 index)
{
	return *counter(index);
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

/*
 * Whether more has been read than TCP has received: what another socket of a sockmap has passed on
 * is in copied_seq, too, on some kernels.
 */
static __always_inline bool is_ahead(struct tcp_counters *at)
{
	return (s32)(at->rcv_nxt - at->copied_seq) < 0;
}

/* What has been received and not been read, with a FIN. */
static __always_inline u32 unread(struct tcp_counters *at)
{
	return is_ahead(at) ? 0 : at->rcv_nxt - at->copied_seq;
}

/* The peer's FIN is the last in rcv_nxt, and was read. */
static __always_inline bool fin_read(u64 flags, u32 copied_seq, u32 rcv_nxt)
{
	return flags & SOCK_DONE && copied_seq == rcv_nxt;
}

/* With these kinds no program runs when recv(MSG_OOB) returns. */
#if defined(PROBE_CLASSIC) || defined(PROBE_ITER) && !defined(HAVE_tcp_recv_urg)
#define URGENT_UNSEEN
#endif

/*
 * The urgent byte has a sequence number in the stream, but recv() jumps over it
 * unless SO_OOBINLINE is set, and recv(MSG_OOB) takes it without moving
 * copied_seq (tcp_recv_urg() and tcp_recvmsg_locked(), net/ipv4/tcp.c).
 */
static __always_inline bool reads_in_line(void *tp)
{
	return FIELD(u64, tp, OFFSET_skc_flags) & SOCK_URGINLINE;
}

/* Of position.urgent: tcp_check_urg() has not set the mark, or has. */
enum { COMING = 1, MARKED };

static __always_inline void expect_urgent(void *tp, struct position *position, u8 urgent)
{
	position->urgent = urgent;
	position->urgent_taken = 0;
	position->urgent_in_line = reads_in_line(tp);
}

/*
 * What is received is counted from here. A new connection has the mark of its socket's last one.
 * Perhaps without the lock: tcp_check_urg() sets urg_data before the mark, and reading clears it
 * after it has moved copied_seq.
 */
static __always_inline void start_reading(void *tp, struct position *position)
{
	u16 data;

	position->urgent_mark = FIELD(u32, tp, OFFSET_urg_seq);
	barrier();
	data = FIELD(u16, tp, OFFSET_urg_data);
	barrier();
	position->copied_seq = FIELD(u32, tp, OFFSET_copied_seq);
	position->urgent =
	    data && (s32)(position->urgent_mark - position->copied_seq) >= 0 ? MARKED : 0;
	position->urgent_taken = (data & TCP_URG_READ) != 0;
	position->urgent_in_line = reads_in_line(tp);
}

/*
 * What is to be added to the movement of copied_seq since the last look; the caller has the
 * socket's lock.
 */
static __always_inline int urgent_bytes(void *tp, struct position *position, u32 copied_seq)
{
	u32 mark = FIELD(u32, tp, OFFSET_urg_seq);
	bool in_line, changed, unseen = false;
	int bytes = 0;

	if (mark != position->urgent_mark) {
		position->urgent_mark = mark;
		if (position->urgent == COMING)
			position->urgent = MARKED;
		else /* it was not seen coming */
			expect_urgent(tp, position, MARKED);
	}
	if (!position->urgent)
		return 0;
	in_line = reads_in_line(tp);
	changed = in_line != position->urgent_in_line;
	position->urgent_in_line = in_line;
	if (!position->urgent_taken && FIELD(u16, tp, OFFSET_urg_data) & TCP_URG_READ) {
		position->urgent_taken = 1;
		bytes++;
	}
	if (mark - position->copied_seq < copied_seq - position->copied_seq) {
#ifdef URGENT_UNSEEN /* nobody knows whether it was read before it was jumped over */
		unseen = !in_line && !position->urgent_taken;
#endif
		/* It may have been passed before the option was changed, or after. */
		if (changed || unseen)
			count(EVENTS_MISSED);
		if (changed || !in_line)
			bytes--;
		position->urgent = 0;
		position->urgent_taken = 0;
	}
	return bytes;
}

/* Whether tcp_check_urg() steps over the byte at the old mark: if the reader stands there. */
static __always_inline bool skips_old_mark(void *tp, u32 copied_seq)
{
	return FIELD(u16, tp, OFFSET_urg_data) && FIELD(u32, tp, OFFSET_urg_seq) == copied_seq &&
	       copied_seq != FIELD(u32, tp, OFFSET_rcv_nxt) && !reads_in_line(tp);
}

/* Whether anything was sent on a connection, or received. */
static __always_inline bool has_moved(void *tp)
{
	return FIELD(u64, tp, OFFSET_bytes_sent) ||
	       FIELD(u32, tp, OFFSET_write_seq) != FIELD(u32, tp, OFFSET_snd_una) ||
	       FIELD(u32, tp, OFFSET_copied_seq) != first_received(tp);
}

/* Whether a session that ends, and of which nothing is known, should have been counted. */
static __always_inline bool was_overlooked(void *tp)
{
	return setting(PHASE) == COUNTING && is_tcp(tp) && session_matches(tp) && has_moved(tp);
}

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
#endif
