// SPDX-License-Identifier: Apache-2.0
/*
 * What both programs have in common: how to read the kernel's memory, whose traffic it is,
 * and the filters.
 *
 * Python puts the options and field offsets in front as macros:
 *   PROBE_FENTRY, PROBE_KPROBE, PROBE_CLASSIC, PROBE_ITER, PROBE_TRACEPOINT  what kind this is
 *   ENTRY_TYPED, EVENT_TYPED         which programs know the types of their arguments
 *   COUNTERS_ADDRESS                 what stands for the address of `counters`
 *   MAP_FLAGS                        of maps whose entries are allocated when used
 *   PID_MATCHES(pid)                 the filter for processes, as a condition
 *   SESSION_FILTER                   only some sessions are wanted, by these conditions:
 *   FAMILY_MATCHES(family), LPORT_MATCHES(port), RPORT_MATCHES(port)
 *   TASK_FILTER                      only some tasks are wanted, and a task may become another:
 *   CGROUP_ID, CGROUP_LEVEL          a cgroup v2 and its depth, if only that is wanted
 *   CGROUPMAP, MNTNSMAP              the maps of those filters are given
 *   OFFSET_field                     where a kernel structure keeps a field, in bytes
 */

#include <uapi/linux/ptrace.h>

/* For bcc, whose unit for a ring buffer it is; pages are no larger than this anywhere. */
#undef PAGE_SIZE
#define PAGE_SIZE 65536

#define AF_INET6 10
#define IPPROTO_TCP 6
/* enum sock_flags, include/net/sock.h: bits of sk_flags, unchanged since 2.6. */
#define SOCK_DEAD (1 << 0)
#define SOCK_DONE (1 << 1) /* set by tcp_fin(): the peer's FIN is in rcv_nxt */
#define SOCK_URGINLINE (1 << 2)
/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCPF_SENDING (1 << TCP_ESTABLISHED | 1 << 8) /* or CLOSE_WAIT */
#define TCPF_SYN_SENT (1 << 2)
#define TCPF_LISTEN (1 << 10)
/* FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING: our FIN is in write_seq. */
#define TCPF_FIN_QUEUED (1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11)

/* include/linux/sched.h, unchanged since 2.6.27 */
#define PF_KTHREAD 0x00200000
#define PF_WQ_WORKER 0x00000020

/*
 * Whose traffic a row of the table is: a process' and a session's. Numbers are in network
 * byte order, so that user space can sort by the bytes as they are.
 */
struct identity {
	u8 family; /* AF_INET or AF_INET6 */
	u8 unused[3];
	u32 pid; /* process (thread group) id */
	u16 lport;
	u16 rport;
	u8 laddr[16]; /* the first 4 for AF_INET */
	u8 raddr[16];
	char comm[16];
	u32 uid; /* the user's, as the initial user namespace has it; NO_UID if unknown */
	u64 cgroup; /* id of the cgroup v2, 0 if unknown */
};

#define NO_UID 0xffffffff

/* A number that user space puts in, in this one's place, when it loads what was compiled. */
#define NUMBER(placeholder)                                                                        \
	({                                                                                         \
		u64 _number;                                                                       \
		asm("%0 = %1 ll" : "=r"(_number) : "i"(placeholder));                              \
		_number;                                                                           \
	})

#define FETCH(type, base, offset)                                                                  \
	({                                                                                         \
		type _value = 0;                                                                   \
		bpf_probe_read_kernel(&_value, sizeof(_value), (void *)(base) + (offset));         \
		_value;                                                                            \
	})

/* A field of what the verifier knows the type of is read directly. */
#if defined(PROBE_FENTRY) || defined(PROBE_ITER)
#define KNOWS_TYPES
#define FIELD(type, base, offset) (*(type *)((void *)(base) + (offset)))
#else
#define FIELD FETCH
#endif

/*
 * Programs are named for what they are attached to, and where: its entry or return, or for
 * tracepoints `event` and, for what comes after that, `again`. Python loads and attaches what it
 * finds. TYPED programs know the types of their arguments. (bcc 0.18 puts a function's section in
 * front of the macro, so each makes one function.)
 */
#ifdef ENTRY_TYPED
#define ENTRY(function, action)                                                                    \
	int entry__##function(u64 *argument)                                                       \
	{                                                                                          \
		return action((void *)argument[0]);                                                \
	}
#else
#define ENTRY(function, action)                                                                    \
	int entry__##function(struct pt_regs *ctx)                                                 \
	{                                                                                          \
		return action((void *)PT_REGS_PARM1(ctx));                                         \
	}
#endif
#define RETURN(function, action)                                                                   \
	int return__##function(struct pt_regs *ctx)                                                \
	{                                                                                          \
		return action(PT_REGS_RC(ctx));                                                    \
	}
#ifdef EVENT_TYPED
#define ARGUMENT(number) ((void *)argument[number])
#define CONTEXT u64 *argument
#else
#define ARGUMENT(number) ((void *)ctx->args[number])
#define CONTEXT struct bpf_raw_tracepoint_args *ctx
#endif
#define TRACEPOINT(when, name, action)                                                             \
	int when##__##name(CONTEXT)                                                                \
	{                                                                                          \
		return action;                                                                     \
	}

/* User space makes the maps, and decides how much they hold. */
#define ANY_SIZE 1

/* Those of the two map filters are made by others; a map of maps takes them by descriptor. */
#ifdef CGROUPMAP
BPF_F_TABLE("hash", u64, u64, cgroup_example, ANY_SIZE, 0);
BPF_ARRAY_OF_MAPS(cgroupmap, "cgroup_example", 1);
#endif
#ifdef MNTNSMAP
BPF_F_TABLE("hash", u64, u32, mntns_example, ANY_SIZE, 0);
BPF_ARRAY_OF_MAPS(mntnsmap, "mntns_example", 1);
#endif

/*
 * Index of `counters`, which user space has in its memory. Looks are counted until it is proved
 * that there are any. User space sets the last two, and numbers intervals from 1.
 */
enum { EVENTS_MISSED, ROWS_MADE, SPECIALS_MADE, LOOKS_PROVED, PHASE, INTERVAL, COUNTERS };

/* Of PHASE: whether looks are seen at all, what is open already, and the rest of the time. */
enum { PROVING, NOTING, COUNTING };

struct counters {
	u64 of[COUNTERS];
};

/* One element, whose address user space puts in when it loads what was compiled. */
BPF_F_TABLE("array", int, struct counters, counters, 1, BPF_F_MMAPABLE);

static __always_inline volatile u64 *counter(u32 index)
{
	return (volatile u64 *)NUMBER(COUNTERS_ADDRESS) + index;
}

static __always_inline void count(u32 index)
{
	__sync_fetch_and_add(counter(index), 1);
}

static __always_inline bool has(void *map, u64 key)
{
	return map && bpf_map_lookup_elem(map, &key);
}

#ifdef CGROUPMAP
static __always_inline bool in_cgroupmap(u64 cgroup)
{
	int only = 0;

	return has(cgroupmap.lookup(&only), cgroup);
}
#else
#define in_cgroupmap(cgroup) 1
#endif

#ifdef MNTNSMAP
static __always_inline bool in_mntnsmap(void *task)
{
	int only = 0;
	void *namespace = FETCH(void *, FETCH(void *, task, OFFSET_nsproxy), OFFSET_mnt_ns);

	return has(mntnsmap.lookup(&only), FETCH(u32, namespace, OFFSET_inum));
}
#else
#define in_mntnsmap(task) 1
#endif

/* Whether the task that runs is one of those asked for. */
static __always_inline bool task_matches(u32 pid)
{
	if (!(PID_MATCHES(pid)))
		return false;
#if defined(CGROUP_ID) && defined(OFFSET_ancestor_ids)
	void *set = FETCH(void *, bpf_get_current_task(), OFFSET_cgroups);
	void *cgroup = FETCH(void *, set, OFFSET_dfl_cgrp);
	u32 at = OFFSET_ancestor_ids + CGROUP_LEVEL * sizeof(u64);

	if (FETCH(int, cgroup, OFFSET_level) < CGROUP_LEVEL || FETCH(u64, cgroup, at) != CGROUP_ID)
		return false;
#elif defined(CGROUP_ID)
	if (bpf_get_current_ancestor_cgroup_id(CGROUP_LEVEL) != CGROUP_ID)
		return false;
#endif
	return in_cgroupmap(bpf_get_current_cgroup_id()) &&
	       in_mntnsmap((void *)bpf_get_current_task());
}

#ifdef PROBE_ITER
#ifdef OFFSET_level
static __always_inline void *cgroup_of(void *task)
{
	return FETCH(void *, FETCH(void *, task, OFFSET_cgroups), OFFSET_dfl_cgrp);
}

static __always_inline u64 id_of(void *cgroup)
{
	return FETCH(u64, FETCH(void *, cgroup, OFFSET_kn), OFFSET_id);
}
#endif

/* The same of another task. */
static __always_inline bool other_matches(void *task, u32 pid)
{
	if (!(PID_MATCHES(pid)))
		return false;
#if defined(CGROUP_ID) || defined(CGROUPMAP)
	void *cgroup = cgroup_of(task);
#endif
#ifdef CGROUP_ID
	if (FETCH(int, cgroup, OFFSET_level) < CGROUP_LEVEL)
		return false;
#ifdef OFFSET_ancestor_ids
	if (FETCH(u64, cgroup, OFFSET_ancestor_ids + CGROUP_LEVEL * sizeof(u64)) != CGROUP_ID)
		return false;
#else
	void *above = FETCH(void *, cgroup, OFFSET_ancestors + CGROUP_LEVEL * sizeof(void *));

	if (id_of(above) != CGROUP_ID)
		return false;
#endif
#endif
	return in_cgroupmap(id_of(cgroup)) && in_mntnsmap(task);
}
#endif

/* Whether a session is one of those asked for. */
static __always_inline bool session_matches(void *tp)
{
#ifdef SESSION_FILTER
	u16 family = FIELD(u16, tp, OFFSET_skc_family);
	u16 lport = bpf_ntohs(FIELD(u16, tp, OFFSET_inet_sport));
	u16 rport = bpf_ntohs(FIELD(u16, tp, OFFSET_skc_dport));

	return (FAMILY_MATCHES(family)) && (LPORT_MATCHES(lport)) && (RPORT_MATCHES(rport));
#else
	return true;
#endif
}

/* Whether what is known of no process is wanted. */
static __always_inline bool nobody_matches(void)
{
	u32 pid = 0;
#ifdef TASK_FILTER
	return false;
#endif
	return PID_MATCHES(pid);
}

/*
 * What tells a connection from others that had its socket before: the sequence number of its
 * first byte, or of its SYN if it sent that first. TCP moves snd_una and bytes_acked together
 * (tcp_snd_una_update(), net/ipv4/tcp_input.c), so the caller has the socket's lock, or a
 * softirq has its spin lock.
 */
static __always_inline u32 connection_of(void *tp)
{
	return FIELD(u32, tp, OFFSET_snd_una) - (u32)FIELD(u64, tp, OFFSET_bytes_acked);
}

/* Whether the current task owns the socket's lock; a softirq only holds the lock's spin lock. */
static __always_inline bool is_owned(void *tp)
{
	return FIELD(int, tp, OFFSET_owned);
}

/* Whose session a socket is. */
static __always_inline void name_session(struct identity *identity, void *tp)
{
	identity->family = FIELD(u16, tp, OFFSET_skc_family);
	identity->lport = FIELD(u16, tp, OFFSET_inet_sport);
	identity->rport = FIELD(u16, tp, OFFSET_skc_dport);
#ifdef OFFSET_skc_v6_daddr /* the kernel has IPv6 */
	if (identity->family == AF_INET6) {
		bpf_probe_read_kernel(identity->laddr, 16, tp + OFFSET_skc_v6_rcv_saddr);
		bpf_probe_read_kernel(identity->raddr, 16, tp + OFFSET_skc_v6_daddr);
		return;
	}
#endif
	bpf_probe_read_kernel(identity->laddr, 4, tp + OFFSET_skc_rcv_saddr);
	bpf_probe_read_kernel(identity->raddr, 4, tp + OFFSET_skc_daddr);
}

/* A task's process, by the name of its first thread: others may have one of their own. */
static __always_inline void name_task(struct identity *identity, void *task, u32 pid)
{
	void *leader = FETCH(void *, task, OFFSET_group_leader);

	identity->pid = bpf_htonl(pid);
	bpf_probe_read_kernel(identity->comm, sizeof(identity->comm), leader + OFFSET_comm);
}

/* The process that runs. What may change in its life is as of now, when the row is made. */
static __always_inline void name_process(struct identity *identity, u32 pid)
{
	name_task(identity, (void *)bpf_get_current_task(), pid);
	identity->uid = bpf_htonl((u32)bpf_get_current_uid_gid());
#if defined(OFFSET_level) || defined(CONFIG_CGROUPS) /* without BTF, the kernel's headers say */
	identity->cgroup = bpf_htonll(bpf_get_current_cgroup_id());
#endif
}

#ifdef PROBE_ITER
/* The process of another task. */
static __always_inline void name_other(struct identity *identity, void *task, u32 pid)
{
	name_task(identity, task, pid);
	identity->uid = bpf_htonl(FETCH(u32, FETCH(void *, task, OFFSET_cred), OFFSET_uid));
#ifdef OFFSET_level
	identity->cgroup = bpf_htonll(id_of(cgroup_of(task)));
#endif
}
#endif

/* No process is known. */
static __always_inline void name_nobody(struct identity *identity)
{
	identity->comm[0] = '-';
	identity->uid = NO_UID;
}
