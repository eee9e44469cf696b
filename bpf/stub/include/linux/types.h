/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stubs under this directory stand in for the kernel headers that bcc's own
 * headers ask for: our programs read kernel structures by offsets from BTF.
 */
#ifndef STUB_TYPES_H
#define STUB_TYPES_H
typedef signed char s8, __s8;
typedef unsigned char u8, __u8;
typedef short s16, __s16;
typedef unsigned short u16, __u16, __be16, __le16, __sum16;
typedef int s32, __s32;
typedef unsigned int u32, __u32, __be32, __le32, __wsum;
typedef long long s64, __s64;
typedef unsigned long long u64, __u64, __be64, __le64;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __always_inline inline __attribute__((always_inline))
enum { false, true };
#endif
