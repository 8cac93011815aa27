/* CPUID in the forms that the host makes jumps of, and the same with a `nop` beside it, which stays an
 * instruction: both must leave the processor alike. Answers what differs. */
#include "guest.h"

/* The general registers, flags and the ends of the red zone. */
struct state {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, flags, red[2];
};
struct vectors {
    unsigned char ymm[16][32];
    uint32_t mxcsr, unused;
};

struct state in, out;
struct vectors vectors_in, vectors_out;
uint64_t has_avx, probe_rsp;

#define EACH_VECTOR(f) \
    f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define LOAD_AVX(n) "  vmovups vectors_in+32*" #n "(%rip), %ymm" #n "\n"
#define KEEP_AVX(n) "  vmovups %ymm" #n ", vectors_out+32*" #n "(%rip)\n"
#define LOAD_SSE(n) "  movups vectors_in+32*" #n "(%rip), %xmm" #n "\n"
#define KEEP_SSE(n) "  movups %xmm" #n ", vectors_out+32*" #n "(%rip)\n"
#define LOAD(name, at) "  mov in+" #at "(%rip), %" #name "\n"
#define KEEP(name, at) "  mov %" #name ", out+" #at "(%rip)\n"
#define EACH_REGISTER(f) \
    f(rax, 0) f(rbx, 8) f(rcx, 16) f(rdx, 24) f(rsi, 32) f(rdi, 40) f(rbp, 48) f(r8, 56) f(r9, 64) \
    f(r10, 72) f(r11, 80) f(r12, 88) f(r13, 96) f(r14, 104) f(r15, 112)

/* `name` runs `text` with the registers of `in` and notes in `out` what it leaves. */
#define PROBE(name, text) \
    void name(void); \
    __asm__(".text\n" #name ": push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n" \
            "  mov %rsp, probe_rsp(%rip)\n" \
            "  ldmxcsr vectors_in+512(%rip)\n" \
            "  cmpl $0, has_avx(%rip)\n  je 1f\n" EACH_VECTOR(LOAD_AVX) "  jmp 2f\n" \
            "1:\n" EACH_VECTOR(LOAD_SSE) \
            "2: push in+120(%rip)\n  popf\n" \
            EACH_REGISTER(LOAD) \
            "  movq $0x1234567, -8(%rsp)\n  movq $0x7654321, -128(%rsp)\n" \
            text \
            EACH_REGISTER(KEEP) \
            "  mov -8(%rsp), %rax\n  mov %rax, out+128(%rip)\n" \
            "  mov -128(%rsp), %rax\n  mov %rax, out+136(%rip)\n" \
            "  pushf\n  pop out+120(%rip)\n  cld\n" \
            "  cmpl $0, has_avx(%rip)\n  je 1f\n" EACH_VECTOR(KEEP_AVX) "  vzeroupper\n  jmp 2f\n" \
            "1:\n" EACH_VECTOR(KEEP_SSE) \
            "2: stmxcsr vectors_out+512(%rip)\n" \
            "  cmp %rsp, probe_rsp(%rip)\n  jne abort\n" \
            "  pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

/* Both ways of it. `beside` is where the host must find nothing that it knows. */
#define FORM(name, before, behind) \
    extern const unsigned char name##_site[]; \
    PROBE(name##_jump, before #name "_site: cpuid\n" behind) \
    PROBE(name##_native, before "  nop\n  cpuid\n  nop\n" behind)
/* The same where the jump begins at the `mov` to eax. */
#define LEAF(name, number, subleaf) \
    extern const unsigned char name##_site[]; \
    PROBE(name##_jump, #name "_site: mov $" #number ", %eax\n" subleaf "  cpuid\n") \
    PROBE(name##_native, "  mov $" #number ", %eax\n" subleaf "  nop\n  cpuid\n  nop\n")

FORM(rust_rsi, "  mov %rbx, %rsi\n", "  xchg %rsi, %rbx\n")
FORM(rust_r10, "  mov %rbx, %r10\n", "  .byte 0x4c, 0x87, 0xd3\n") /* the other way to write xchg */
FORM(clang_rdi, "  xchg %rbx, %rdi\n", "  xchg %rbx, %rdi\n")
FORM(go, "  lea -256(%rsp), %rsp\n  mov %ecx, 12(%rsp)\n  mov 12(%rsp), %ecx\n",
     "  mov %eax, 16(%rsp)\n  mov 16(%rsp), %eax\n  lea 256(%rsp), %rsp\n")
LEAF(leaf_0, 0, "")
LEAF(leaf_1, 1, "  mov %edx, %ecx\n")
LEAF(leaf_7, 7, "  xor %ecx, %ecx\n")
LEAF(leaf_d, 0xd, "  mov $1, %ecx\n")
LEAF(leaf_80000001, 0x80000001, "")
LEAF(leaf_8000001e, 0x8000001e, "  xor %ecx, %ecx\n")

/* Jumps into what has given way, or was left. */
PROBE(to_behind, "  mov %rbx, %rsi\n  jmp 8f\n  mov %rbx, %rsi\n"
                 "behind_site: cpuid\n8: xchg %rsi, %rbx\n")
PROBE(to_behind_native, "  mov %rbx, %rsi\n  jmp 8f\n8: xchg %rsi, %rbx\n")
PROBE(to_subleaf, "  jmp 8f\nsubleaf_site: mov $4, %eax\n8: xor %ecx, %ecx\n  cpuid\n")
PROBE(to_subleaf_native, "  xor %ecx, %ecx\n  nop\n  cpuid\n  nop\n")
extern const unsigned char behind_site[], subleaf_site[];

struct form {
    const char *name;
    void (*jump)(void), (*native)(void);
    const unsigned char *site;
};
#define BOTH(name) {#name, name##_jump, name##_native, name##_site}
static const struct form forms[] = {
    BOTH(rust_rsi), BOTH(rust_r10), BOTH(clang_rdi), BOTH(go), BOTH(leaf_0), BOTH(leaf_1), BOTH(leaf_7),
    BOTH(leaf_d), BOTH(leaf_80000001), BOTH(leaf_8000001e),
    {"to_behind", to_behind, to_behind_native, behind_site},
    {"to_subleaf", to_subleaf, to_subleaf_native, subleaf_site},
};

static uint64_t seed = 1;

static uint64_t next(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* One question, with all else at random. */
static int alike(const struct form *form, uint32_t leaf, uint32_t subleaf) {
    enum { FIXED_FLAGS = 0x202, ARITHMETIC_AND_DIRECTION = 0xcd5, MXCSR = 0x1f80, ROUNDING = 0x6000 };
    for (size_t n = 0; n < sizeof in / 8; n++)
        ((uint64_t *)&in)[n] = next();
    in.rax = (in.rax & ~0xffffffffULL) | leaf;
    in.rcx = (in.rcx & ~0xffffffffULL) | subleaf;
    in.flags = FIXED_FLAGS | (next() & ARITHMETIC_AND_DIRECTION);
    for (size_t n = 0; n < sizeof vectors_in.ymm; n++)
        ((unsigned char *)vectors_in.ymm)[n] = (unsigned char)next();
    vectors_in.mxcsr = MXCSR | (next() & ROUNDING);
    form->native();
    struct state state = out;
    struct vectors vectors = vectors_out;
    form->jump();
    if (memcmp(&state, &out, sizeof out) == 0 && memcmp(&vectors, &vectors_out, sizeof vectors) == 0)
        return 1;
    tell("%s of %#x, %#x: %#lx %#lx %#lx %#lx, not %#lx %#lx %#lx %#lx, or another difference\n", form->name,
         leaf, subleaf, out.rax, out.rbx, out.rcx, out.rdx, state.rax, state.rbx, state.rcx, state.rdx);
    return 0;
}

static void handle(const struct request *request) {
    static const uint32_t classes[] = {0, 0x40000000, 0x40000100, 0x80000000, 0xc0000000};
    static const uint32_t outside[] = {0x80, 0x1000000, 0x3fffffff, 0x4fffffff, 0x7fffffff, 0x80ffffff, 0xffffffff};
    static const uint32_t subleaves[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64, 255, 256, 0x80000000, 0xffffffff};
    enum { SUBLEAVES = sizeof subleaves / sizeof *subleaves };
    told[0] = '\0';
    in.rax = 1;
    leaf_1_native();
    has_avx = out.rcx >> 28 & out.rcx >> 27 & 1;
    int questions = 0, right = 0;
    for (size_t n = 0; n < sizeof forms / sizeof *forms; n++) {
        if (forms[n].site[0] != 0xe9)
            tell("%s was not made a jump\n", forms[n].name);
        for (int round = 0; round < 16; round++, questions++)
            right += alike(&forms[n], (uint32_t)round, subleaves[round]);
    }
    for (size_t n = 0; n < sizeof classes / sizeof *classes; n++)
        for (uint32_t leaf = 0; leaf < 0x30; leaf++)
            for (size_t m = 0; m < SUBLEAVES; m++, questions++)
                right += alike(&forms[0], classes[n] + leaf, subleaves[m]);
    for (size_t n = 0; n < sizeof outside / sizeof *outside; n++)
        for (size_t m = 0; m < SUBLEAVES; m++, questions++)
            right += alike(&forms[0], outside[n], subleaves[m]);
    answer(request, "%s%d of %d\n", told, right, questions);
}

int main(void) {
    serve(handle);
}
