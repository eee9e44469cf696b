// SPDX-License-Identifier: Apache-2.0
/* What tcptop keeps in the kernel, and what crosses over to Python. */

/*
 * One process' use of one connection. A socket may have several in its life, and its address
 * other sockets after it, two with the same sequence number by chance, as was seen among
 * 20 000 sessions in an interval. No two are made there at the same time, which begins anew
 * after more than two hours.
 */
struct session_key {
	u64 socket;
	u32 made; /* position.made */
	u32 pid;
};

/* A row of the table: what one process moved over one session in one interval. */
struct session {
	u64 rx_bytes;
	u64 tx_bytes;
	/*
	 * More bytes, in the share of the position at this address; or here, once that is 0.
	 * They are never added to those above while user space may read the row, so that it
	 * reads either, and no byte twice.
	 */
	u64 settled_rx;
	u64 settled_tx;
	u64 position;
	struct identity identity;
};

/* A row on its way to user space. */
struct record {
	u64 rx_bytes;
	u64 tx_bytes;
	struct identity identity;
	u32 over; /* there will be no more of this key */
	u32 unused;
	struct session_key key;
};

/* What the first process to move a byte of a socket in an interval has moved in it. */
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
	NOTED, /* read without the socket's lock, or there is more to be asked for: not quickly */
};

/* What is kept of a connection. */
struct position {
	/* Of the latest even and odd interval it was used in. First, for emit_row(). */
	struct share shares[2];
	/* Calls that have begun, of the kind `classic`; changed together with the next. */
	u32 sending;
	/* Where TCP's counters stood at the last look. */
	u32 write_seq;
	u32 copied_seq;
	u32 connection;
	u32 made; /* when the position was, in units of 2048 ns */
	u32 urgent_mark; /* urg_seq */
	u32 last_sent; /* write_seq when send_closed was set */
	u32 last_received; /* rcv_nxt when `closed` was */
	u8 stage;
	u8 active; /* a SYN of this side comes before the first byte */
	u8 send_closed; /* what still moves write_seq is a FIN, or no byte either */
	u8 closed; /* in CLOSE: what still moves rcv_nxt is TCP_QUEUE_SEQ */
	u8 special; /* counted through `specials` */
	u8 urgent; /* COMING or MARKED: since the urgent mark was last passed */
	u8 urgent_taken; /* and its byte was read with MSG_OOB */
	u8 urgent_in_line; /* SO_OOBINLINE was set at the last look */
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
	u32 connection;
	u32 rx_first; /* sequence numbers of the first bytes */
	u32 tx_first;
	u32 noted; /* the interval in which a process used it last */
	u8 wanted;
	u8 by_kernel; /* `who` is a thread of the kernel */
	u8 send_closed; /* tx_total is final */
	u8 over; /* and so is rx_total */
	u32 unused;
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
#if defined(HAVE_BTF) && !defined(PROBE_CLASSIC)
#define HAVE_SHARES
#endif
BPF_F_TABLE("hash", struct session_key, struct session, rows_even, ANY_SIZE, MAP_FLAGS);
BPF_F_TABLE("hash", struct session_key, struct session, rows_odd, ANY_SIZE, MAP_FLAGS);
BPF_ARRAY_OF_MAPS(rows, "rows_even", 2);
BPF_F_TABLE("hash", struct session_key, struct special, specials, ANY_SIZE, MAP_FLAGS);

#ifdef UNITS
/* The path of a cgroup v2, without an end if it is longer. */
struct cgroup_path {
	char text[256];
};

/* Those made of late, by id: user space may come too late to see them. */
BPF_F_TABLE("lru_hash", u64, struct cgroup_path, cgroup_paths, ANY_SIZE, 0);
#endif

#ifdef SOCKET_STORAGE
BPF_SK_STORAGE(positions, struct position);
#else
BPF_F_TABLE("hash", u64, struct position, positions, ANY_SIZE, MAP_FLAGS);
#endif
