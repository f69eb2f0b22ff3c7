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

/* Sends frames that were stored to the room that they had, and chains (ferrule_chain). Those behind the number that it
 * returns stay the caller's. */
uint16_t ferrule_tx_burst(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count);

/* The same for frames that were received: chains go as they are. */
uint16_t ferrule_tx_move(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count);

/* The way from a receive queue to a transmit queue, and what the latter takes. */
struct ferrule_path {
	uint16_t rx_port;
	uint16_t rx_queue;
	uint16_t tx_port;
	uint16_t tx_queue;
	uint32_t frame_max;
	uint16_t segments_max;
};

/* What became of a burst. */
struct ferrule_moved {
	/* Frames that were sent, and their bytes. */
	uint64_t frames;
	uint64_t bytes;
	/* Frames that were freed, as by ferrule_rx_burst. */
	uint64_t refused;
};

/* A receive burst, sent as it is. If a frame of it is shorter than FERRULE_FRAME_MIN, or more than the path takes, none is
 * sent. Those that were not sent are shown in `frames`, which has room for FERRULE_BURST, and are the caller's. How many. */
uint16_t ferrule_move(const struct ferrule_path *path, struct ferrule_frame *frames, struct ferrule_moved *moved);

/* Empty frames of one segment. 0, or a negative errno and none. */
int ferrule_alloc(struct rte_mempool *pool, struct ferrule_frame *frames, uint16_t count);

/* Makes one frame of several that were filled, in their order: of frames[0], which stands for all of them then. */
void ferrule_chain(struct ferrule_frame *frames, uint16_t count);

/* What a device has to do on a frame of TCP or UDP, whose headers lie in its first segment. */
struct ferrule_offload {
	/* Bytes of the headers. */
	uint16_t link_len;
	uint16_t network_len;
	uint16_t transport_len;
	/* Payload bytes of each TCP segment; 0: one frame. */
	uint16_t segment;
	uint8_t is_ipv6;
	uint8_t is_udp;
};

/* Has the device finish a frame that is in a chain (ferrule_chain), and whose checksum holds the sum of the pseudo-header. 0, or a
 * negative errno: its driver cannot. */
int ferrule_finish(uint16_t port, uint16_t queue, const struct ferrule_frame *frame, const struct ferrule_offload *offload);

/* A pool of mbufs in memory of small pages that a device sees as the process does (IOVA as VA). They lie next to each other, across pages:
 * rte_pktmbuf_pool_create would begin each in a page of its own, where all of them share a few sets of the CPU's caches. NULL, and
 * ferrule_errno: there is not enough memory. */
struct rte_mempool *ferrule_pool_create(const char *name, uint32_t count, uint32_t cache, uint16_t room, int node);

/* How many mbufs are in a pool itself: neither in use nor in the cache of a thread. */
uint32_t ferrule_pool_count(const struct rte_mempool *pool);

/* Frees frames, chains as a whole. */
void ferrule_free(struct ferrule_frame *frames, uint16_t count);

/* Where the segments of a chain lie, as far as there is place for them. How many. */
uint16_t ferrule_segments(const struct rte_mbuf *mbuf, struct ferrule_segment *segments, uint16_t max);

/* From now on drivers that know when a frame arrived store it in the frame, if their port was told to. 0, or a negative errno. */
int ferrule_stamps_enable(void);

/* When received frames arrived, by their device's clock (rte_eth_read_clock). There is room for each in `stamps`. How many of the first ones
 * say so. */
uint16_t ferrule_stamps(const struct ferrule_frame *frames, uint16_t count, uint64_t *stamps);

/* The state of a link, without waiting. 0, or a negative errno. */
int ferrule_link_get(uint16_t port, struct ferrule_link *link);

#define FERRULE_BURST 64
/* The shortest frame of Ethernet, without its checksum: a NIC may take a shorter one for an attack. */
#define FERRULE_FRAME_MIN 60
#define FERRULE_FRAME_MAX 65536
#define FERRULE_SEGMENTS_MAX 64

#endif
