#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_memzone.h>
#include <rte_prefetch.h>

/* Threads. */

static pthread_key_t at_exit;
static pthread_once_t at_exit_made = PTHREAD_ONCE_INIT;
static __thread bool is_known;

static void unregister(void *unused)
{
	(void)unused;
	rte_thread_unregister();
}

static void make_at_exit(void)
{
	pthread_key_create(&at_exit, unregister);
}

/* A thread with an id has a cache of its own in every mempool. If DPDK has no more ids, it works all the same. */
static __attribute__((noinline, cold)) void register_thread(void)
{
	is_known = true;
	if (rte_lcore_id() != LCORE_ID_ANY || rte_thread_register() != 0)
		return;
	pthread_once(&at_exit_made, make_at_exit);
	pthread_setspecific(at_exit, &at_exit);
}

static inline void know_thread(void)
{
	if (unlikely(!is_known))
		register_thread();
}

int ferrule_errno(void)
{
	return rte_errno;
}

/* Memory. */

static int refuse(int node, size_t current, size_t wanted)
{
	(void)node;
	(void)current;
	(void)wanted;
	return -1;
}

int ferrule_forbid_growth(void)
{
	for (unsigned int i = 0; i < rte_socket_count(); i++)
		if (rte_mem_alloc_validator_register("ferrule", refuse, rte_socket_id_by_idx(i), 0) != 0)
			return -rte_errno;
	return 0;
}

/* Log. */

static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	((ferrule_log_fn)cookie)(rte_log_cur_msg_loglevel(), text, len);
	return len;
}

int ferrule_log_open(ferrule_log_fn write)
{
	cookie_io_functions_t functions = { .write = log_write };
	FILE *stream = fopencookie((void *)write, "w", functions);

	if (stream == NULL)
		return -errno;
	return rte_openlog_stream(stream) == 0 ? 0 : -EIO;
}

/* Frames. */

static inline void view(struct ferrule_frame *frame, struct rte_mbuf *mbuf)
{
	frame->mbuf = mbuf;
	frame->data = rte_pktmbuf_mtod(mbuf, uint8_t *);
	frame->len = mbuf->pkt_len;
	frame->first = mbuf->data_len;
	frame->segments = mbuf->nb_segs;
	rte_prefetch0(frame->data);
}

/* Shows frames, but for those that nobody could take, which are freed and counted. How many. */
static inline uint16_t show(struct rte_mbuf **mbufs, uint16_t received, struct ferrule_frame *frames, uint64_t *refused)
{
	uint16_t shown = 0;

	for (uint16_t i = 0; i < received; i++) {
		if (unlikely(mbufs[i]->pkt_len > FERRULE_FRAME_MAX || mbufs[i]->nb_segs > FERRULE_SEGMENTS_MAX)) {
			rte_pktmbuf_free(mbufs[i]);
			++*refused;
			continue;
		}
		view(&frames[shown++], mbufs[i]);
	}
	return shown;
}

uint16_t ferrule_rx_burst(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count,
			  uint64_t *refused)
{
	struct rte_mbuf *mbufs[FERRULE_BURST];

	know_thread();
	return show(mbufs, rte_eth_rx_burst(port, queue, mbufs, RTE_MIN(count, FERRULE_BURST)), frames, refused);
}

/* Tells mbufs how much was stored in them: in all of a chain but the last as much as there is room. */
static inline uint16_t transmit(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count, bool is_new)
{
	struct rte_mbuf *mbufs[FERRULE_BURST];

	know_thread();
	count = RTE_MIN(count, FERRULE_BURST);
	for (uint16_t i = 0; i < count; i++) {
		mbufs[i] = frames[i].mbuf;
		if (is_new) {
			mbufs[i]->data_len = RTE_MIN(frames[i].len, frames[i].first);
			mbufs[i]->pkt_len = frames[i].len;
		}
	}
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

uint16_t ferrule_tx_burst(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count)
{
	return transmit(port, queue, frames, count, true);
}

uint16_t ferrule_tx_move(uint16_t port, uint16_t queue, struct ferrule_frame *frames, uint16_t count)
{
	return transmit(port, queue, frames, count, false);
}

/* Adds up the lengths of frames. Whether all of them may be sent as they are. Without branches: all loads are under way at once. */
static inline bool may_move(struct rte_mbuf *const *mbufs, uint16_t count, const struct ferrule_path *path, uint32_t *bytes)
{
	const uint32_t range = path->frame_max - FERRULE_FRAME_MIN;
	uint32_t sum = 0, refused = 0;

	for (uint16_t i = 0; i < count; i++) {
		const uint32_t len = mbufs[i]->pkt_len;

		sum += len;
		refused |= (len - FERRULE_FRAME_MIN > range) | (mbufs[i]->nb_segs > path->segments_max);
	}
	*bytes = sum;
	return refused == 0;
}

uint16_t ferrule_move(const struct ferrule_path *path, struct ferrule_frame *frames, struct ferrule_moved *moved)
{
	struct rte_mbuf *mbufs[FERRULE_BURST];
	uint16_t received, sent = 0;
	uint32_t bytes;

	know_thread();
	received = rte_eth_rx_burst(path->rx_port, path->rx_queue, mbufs, FERRULE_BURST);
	if (received == 0) {
		*moved = (struct ferrule_moved){ 0 };
		return 0;
	}
	if (likely(may_move(mbufs, received, path, &bytes)))
		sent = rte_eth_tx_burst(path->tx_port, path->tx_queue, mbufs, received);
	else
		bytes = 0;
	moved->frames = sent;
	moved->refused = 0;
	if (unlikely(sent < received)) {
		/* What was sent is not ours any more, what was not is. */
		for (uint16_t i = sent; i < received && sent > 0; i++)
			bytes -= mbufs[i]->pkt_len;
		received = show(mbufs + sent, received - sent, frames, &moved->refused);
	} else {
		received = 0;
	}
	moved->bytes = bytes;
	return received;
}

int ferrule_alloc(struct rte_mempool *pool, struct ferrule_frame *frames, uint16_t count)
{
	struct rte_mbuf *mbufs[FERRULE_BURST];

	if (count > FERRULE_BURST)
		return -EINVAL;
	know_thread();
	if (rte_pktmbuf_alloc_bulk(pool, mbufs, count) != 0)
		return -ENOMEM;
	for (uint16_t i = 0; i < count; i++) {
		frames[i].mbuf = mbufs[i];
		frames[i].data = rte_pktmbuf_mtod(mbufs[i], uint8_t *);
		frames[i].len = 0;
		frames[i].first = rte_pktmbuf_tailroom(mbufs[i]);
		frames[i].segments = 1;
	}
	return 0;
}

void ferrule_chain(struct ferrule_frame *frames, uint16_t count)
{
	struct rte_mbuf *head = frames[0].mbuf, *last = head;
	uint32_t len = 0;

	for (uint16_t i = 0; i < count; i++) {
		struct rte_mbuf *mbuf = frames[i].mbuf;

		mbuf->data_len = frames[i].len;
		len += frames[i].len;
		if (i > 0) {
			last->next = mbuf;
			last = mbuf;
		}
	}
	head->nb_segs = count;
	head->pkt_len = len;
	frames[0].len = len;
	frames[0].segments = count;
}

int ferrule_finish(uint16_t port, uint16_t queue, const struct ferrule_frame *frame, const struct ferrule_offload *offload)
{
	struct rte_mbuf *mbuf = frame->mbuf;

	mbuf->l2_len = offload->link_len;
	mbuf->l3_len = offload->network_len;
	mbuf->l4_len = offload->transport_len;
	mbuf->ol_flags |= offload->is_ipv6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
	mbuf->ol_flags |= offload->is_udp ? RTE_MBUF_F_TX_UDP_CKSUM : RTE_MBUF_F_TX_TCP_CKSUM;
	if (offload->segment != 0) {
		mbuf->tso_segsz = offload->segment;
		mbuf->ol_flags |= RTE_MBUF_F_TX_TCP_SEG;
		if (!offload->is_ipv6)
			mbuf->ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
	}
	/* Each driver wants another sum of the pseudo-header. */
	return rte_eth_tx_prepare(port, queue, &mbuf, 1) == 1 ? 0 : -rte_errno;
}

void ferrule_free(struct ferrule_frame *frames, uint16_t count)
{
	struct rte_mbuf *mbufs[FERRULE_BURST];

	count = RTE_MIN(count, FERRULE_BURST);
	for (uint16_t i = 0; i < count; i++)
		mbufs[i] = frames[i].mbuf;
	rte_pktmbuf_free_bulk(mbufs, count);
}

#ifdef __SANITIZE_ADDRESS__
void __asan_poison_memory_region(const volatile void *address, size_t size);

/* What is written beyond a buffer goes to the header of the next one. DPDK itself is not checked, and uses it as ever. */
static void poison_header(struct rte_mempool *pool, void *unused, void *mbuf, unsigned int number)
{
	(void)unused;
	(void)number;
	__asan_poison_memory_region((char *)mbuf - pool->header_size, pool->header_size);
}
#endif

struct rte_mempool *ferrule_pool_create(const char *name, uint32_t count, uint32_t cache, uint16_t room, int node)
{
	struct rte_pktmbuf_pool_private private = { .mbuf_data_room_size = room };
	const struct rte_memzone *memory = NULL;
	char memory_name[RTE_MEMZONE_NAMESIZE];
	struct rte_mempool *pool;
	size_t chunk_min, align;
	ssize_t size;
	int status;

	pool = rte_mempool_create_empty(name, count, sizeof(struct rte_mbuf) + room, cache, sizeof(private), node,
					RTE_MEMPOOL_F_NO_IOVA_CONTIG);
	if (pool == NULL)
		return NULL;
	status = rte_mempool_set_ops_byname(pool, rte_mbuf_best_mempool_ops(), NULL);
	if (status != 0)
		goto fail;
	rte_pktmbuf_pool_init(pool, &private);
	size = rte_mempool_op_calc_mem_size_default(pool, count, 0, &chunk_min, &align);
	if (size < 0) {
		status = size;
		goto fail;
	}
	snprintf(memory_name, sizeof(memory_name), "%s-mbufs", name);
	memory = rte_memzone_reserve_aligned(memory_name, size, node, 0, align);
	if (memory == NULL) {
		status = -rte_errno;
		goto fail;
	}
	status = rte_mempool_populate_iova(pool, memory->addr, memory->iova, size, NULL, NULL);
	if (status != (int)count) {
		status = status < 0 ? status : -ENOMEM;
		goto fail;
	}
	rte_mempool_obj_iter(pool, rte_pktmbuf_init, NULL);
#ifdef __SANITIZE_ADDRESS__
	rte_mempool_obj_iter(pool, poison_header, NULL);
#endif
	return pool;
fail:
	rte_mempool_free(pool);
	rte_memzone_free(memory);
	rte_errno = -status;
	return NULL;
}

uint32_t ferrule_pool_count(const struct rte_mempool *pool)
{
	return rte_mempool_get_ops(pool->ops_index)->get_count(pool);
}

uint16_t ferrule_segments(const struct rte_mbuf *mbuf, struct ferrule_segment *segments, uint16_t max)
{
	uint16_t count = 0;

	for (; mbuf != NULL && count < max; mbuf = mbuf->next) {
		segments[count].data = rte_pktmbuf_mtod(mbuf, const uint8_t *);
		segments[count].len = mbuf->data_len;
		count++;
	}
	return count;
}

/* Times. */

static int stamp_offset = -1;
static uint64_t stamp_flag;

int ferrule_stamps_enable(void)
{
	return rte_mbuf_dyn_rx_timestamp_register(&stamp_offset, &stamp_flag) == 0 ? 0 : -rte_errno;
}

uint16_t ferrule_stamps(const struct ferrule_frame *frames, uint16_t count, uint64_t *stamps)
{
	uint16_t i;

	if (stamp_offset < 0)
		return 0;
	for (i = 0; i < count && (frames[i].mbuf->ol_flags & stamp_flag) != 0; i++)
		stamps[i] = *RTE_MBUF_DYNFIELD(frames[i].mbuf, stamp_offset, rte_mbuf_timestamp_t *);
	return i;
}

/* Ports. */

int ferrule_link_get(uint16_t port, struct ferrule_link *link)
{
	struct rte_eth_link state = { 0 };
	int status = rte_eth_link_get_nowait(port, &state);

	link->speed = state.link_speed;
	link->is_up = state.link_status == RTE_ETH_LINK_UP;
	return status;
}
