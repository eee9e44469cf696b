/* SPDX-License-Identifier: Apache-2.0 */
/* Nothing in here is needed. */
