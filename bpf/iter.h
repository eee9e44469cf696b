// SPDX-License-Identifier: Apache-2.0
/* What the kind `iter` keeps in the kernel, and what crosses over to Python. */

/* What was moved over a session since the last record of it. */
struct record {
	u64 rx_bytes;
	u64 tx_bytes;
	struct identity identity;
};

/* How much of a position is known. */
enum {
	KNOWN,
	BEGUN, /* nothing had been moved then, and perhaps there were no sequence numbers yet */
	NOTED, /* read without the socket's lock: the totals are as of these sequence numbers */
};

/* What is kept of a connection. */
struct position {
	/* What was reported so far, or moved before the start. */
	u64 rx_bytes;
	u64 tx_bytes;
	/* Where TCP's counters stood then. */
	u32 write_seq;
	u32 copied_seq;
	u32 connection;
	u32 urgent_mark; /* urg_seq */
	s32 urgent_bytes; /* read with MSG_OOB, less those that copied_seq has jumped over */
	u8 stage;
	u8 active; /* a SYN of this side comes before the first byte */
	u8 send_closed; /* tx_bytes is final */
	u8 wanted; /* by the filters for processes */
	u8 urgent; /* COMING or MARKED: since the urgent mark was last passed */
	u8 urgent_taken; /* and its byte was read with MSG_OOB */
	u8 urgent_in_line; /* SO_OOBINLINE, when it came or at the last look */
	/* Who opened or accepted it; no family unless its session is named. */
	struct identity owner;
};

BPF_SK_STORAGE(positions, struct position);
/* What is reported; user space reads the memory of it. */
BPF_RINGBUF_OUTPUT(moved, ANY_SIZE);
/* The network namespaces in which sessions have begun since user space took the last. */
BPF_F_TABLE("hash", u32, u32, namespaces, ANY_SIZE, 0);

/* Index of `counters` that other kinds use for something else. */
enum { SOCKETS_SEEN = ROWS_MADE, NAMESPACES_MADE = SPECIALS_MADE };
