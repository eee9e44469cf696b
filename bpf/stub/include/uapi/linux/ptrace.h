/* SPDX-License-Identifier: Apache-2.0 */
/* The registers of a kprobe, as bcc's headers name them. */
#ifdef __aarch64__
struct user_pt_regs {
	unsigned long regs[31];
	unsigned long sp, pc, pstate;
};
/* arch/arm64/include/asm/ptrace.h: bcc uses either name, by its version. */
struct pt_regs {
	union {
		struct user_pt_regs user_regs;
		struct {
			unsigned long regs[31];
			unsigned long sp, pc, pstate;
		};
	};
};
#else
/* x86_64: arch/x86/include/asm/ptrace.h */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#endif
