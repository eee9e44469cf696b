/* SPDX-License-Identifier: Apache-2.0 */
#define CONFIG_BPF_SYSCALL 1
