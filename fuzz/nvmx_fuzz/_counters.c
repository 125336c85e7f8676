/* The branch counters of the compiled core, kept until somebody hands them to libFuzzer.
 *
 * Code compiled with -fsanitize-coverage=inline-8bit-counters,pc-table calls the two functions below as it
 * is loaded, once for each file. No libFuzzer need be there: `feedback.py` asks for the ranges later. A
 * libFuzzer whose symbols are global is called instead, and then there is nothing to hand over.
 */

#include <stddef.h>

enum { RANGES_MAX = 256 };

struct range {
    void *start;
    void *stop;
};

static struct range counters[RANGES_MAX];
static struct range pcs[RANGES_MAX];
static size_t counters_used;
static size_t pcs_used;

static void keep(struct range *ranges, size_t *used, void *start, void *stop) {
    if (start != stop && *used < RANGES_MAX) {
        ranges[*used].start = start;
        ranges[*used].stop = stop;
        ++*used;
    }
}

void __sanitizer_cov_8bit_counters_init(char *start, char *stop) {
    keep(counters, &counters_used, start, stop);
}

void __sanitizer_cov_pcs_init(const size_t *start, const size_t *stop) {
    keep(pcs, &pcs_used, (void *)start, (void *)stop);
}

/* Range `number` into `range`: counter start and stop, table start and stop. 0 when there is none. */
int nvmx_counter_range(size_t number, void *range[4]) {
    if (number >= counters_used || number >= pcs_used)
        return 0;
    range[0] = counters[number].start;
    range[1] = counters[number].stop;
    range[2] = pcs[number].start;
    range[3] = pcs[number].stop;
    return 1;
}
