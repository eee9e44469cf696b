/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels from 5.0 on do not ask which version a program was built for. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
