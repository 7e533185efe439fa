/* Lets one request for memory fail: the n-th of at least so many bytes. GNU libc only.

   cc -shared -fPIC -O2 -o fail_allocation.so fail_allocation.c
   LD_PRELOAD=./fail_allocation.so python ...
   ctypes.CDLL(None).fail_allocation(n, least) counts from here; n = 0 counts and fails none. */

#include <errno.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static size_t least = (size_t)-1;
static long seen, which;

void fail_allocation(long n, size_t n_bytes) {
    seen = 0;
    which = n;
    least = n_bytes;
}

long allocations(void) { return seen; }

static int fails(size_t n_bytes) {
    if (n_bytes < least || __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED) != which) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n) { return fails(n) ? NULL : __libc_malloc(n); }

void *calloc(size_t n, size_t each) { return fails(n * each) ? NULL : __libc_calloc(n, each); }

void *realloc(void *old, size_t n) { return fails(n) ? NULL : __libc_realloc(old, n); }

void *memalign(size_t to, size_t n) { return fails(n) ? NULL : __libc_memalign(to, n); }

void *aligned_alloc(size_t to, size_t n) { return memalign(to, n); }

int posix_memalign(void **p, size_t to, size_t n) {
    if (fails(n)) return ENOMEM;
    *p = __libc_memalign(to, n);
    return *p ? 0 : ENOMEM;
}
