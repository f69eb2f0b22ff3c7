/* What Rust cannot call in libdpdk itself: functions that are only in its headers, thread-local variables, and views of
 * mbufs that are the same whatever their layout is. */
#ifndef FERRULE_SHIM_H
#define FERRULE_SHIM_H

#include <stddef.h>
#include <stdint.h>

struct rte_mbuf;
struct rte_mempool;

/* A frame in an mbuf, or in a chain of them. */
struct ferrule_frame {
	struct rte_mbuf *mbuf;
	/* The first byte of the first segment. */
	uint8_t *data;
	/* Bytes of the whole frame; of one to be sent, what was stored. */
	uint32_t len;
	/* Bytes of the first segment; of an empty one, the room that it has. */
	uint16_t first;
	/* How many mbufs the chain has. */
	uint16_t segments;
};

/* A segment of a frame. */
struct ferrule_segment {
	const uint8_t *data;
	uint32_t len;
};

/* What a link does. */
struct ferrule_link {
	/* Mbit/s; UINT32_MAX: unknown. */
	uint32_t speed;
	uint8_t is_up;
};

/* Called for each message of DPDK's log, on the thread that logs. */
typedef void (*ferrule_log_fn)(uint32_t level, const char *text, size_t len);

/* Sends the log to `write`. 0, or a negative errno. */
int ferrule_log_open(ferrule_log_fn write);

/* From now on DPDK takes no memory more than it has. 0, or a negative errno. */
int ferrule_forbid_growth(void);

/* rte_errno of this thread. */
int ferrule_errno(void);

/* The receive burst of at most FERRULE_BURST frames. Those that are longer than FERRULE_FRAME_MAX, or have more than
 * FERRULE_SEGMENTS_MAX segments, are freed and added to `refused`. Registers the calling thread with DPDK, once. */
uint16_t ferrule_rx_burst(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count,
			  uint64_t *refused);

/* Sends frames of one segment each, which were stored to the room that they had. Those behind the number that it
 * returns stay the caller's. */
uint16_t ferrule_tx_burst(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count);

/* The same for frames that were received: chains go as they are. */
uint16_t ferrule_tx_move(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count);

/* Empty frames of one segment. 0, or a negative errno and none. */
int ferrule_alloc(struct rte_mempool *pool, struct ferrule_frame *frames, uint16_t count);

/* How many mbufs are in a pool itself: neither in use nor in the cache of a thread. */
uint32_t ferrule_pool_count(const struct rte_mempool *pool);

/* Frees frames, chains as a whole. */
void ferrule_free(struct ferrule_frame *frames, uint16_t count);

/* Where the segments of a chain lie, as far as there is place for them. How many. */
uint16_t ferrule_segments(const struct rte_mbuf *mbuf, struct ferrule_segment *segments, uint16_t max);

/* The state of a link, without waiting. 0, or a negative errno. */
int ferrule_link_get(uint16_t port, struct ferrule_link *link);

#define FERRULE_BURST 64
#define FERRULE_FRAME_MAX 65536
#define FERRULE_SEGMENTS_MAX 64

#endif
