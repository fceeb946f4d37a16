/* Namespaces, keys and fingerprints, against vectors that were computed by another program from
 * docs/formats.md. */
#include "harness.h"

#include "base/bytes.h"

#include <utime.h>

static void assert_hex(const kvist_key_t *key, const char *expected)
{
    char text[2 * KVIST_KEY_BYTES + 1];
    kv_hex_encode(key->bytes, KVIST_KEY_BYTES, text);
    assert_string_equal(text, expected);
}

static const kv_block_shape_t SHAPE = {30, 3, 64, 16, 2};

static void keys_are_as_documented(void **state)
{
    (void)state;
    kvist_layout_t layout = kvist_layout_plain(&SHAPE);
    kvist_namespace_params_t params = {.layout = &layout, .adapter = ""};
    kvist_key_t name_space = kvist_namespace(&params), keys[2];
    assert_hex(&name_space, "661e39e482d75c5ff1b86060ed2eb77a27fecd60a9704efd6155e56e5d9dd6bc");
    uint32_t tokens[40];
    for (uint32_t i = 0; i < 40; i++) {
        tokens[i] = i;
    }
    kvist_keys(&name_space, tokens, NULL, 40, 16, keys); /* the last 8 tokens are no block */
    assert_hex(&keys[0], "7c5b7694b9330d7bd30c3c53768949d144c1aaab4d25c9603050d05af9406a42");
    assert_hex(&keys[1], "cb8fc38a4f02313a01592a056b7f8203b093c2b23b5a98be940411f0024acdbb");

    /* With extra keys: of the first block, of the second, zeros, of none. */
    const kvist_key_t image = kv_identity_digest("image", 5);
    const kvist_key_t extras[][2] = {{image}, {{{0}}, image}, {{{0}}}};
    kvist_keys(&name_space, tokens, extras[0], 40, 16, keys);
    assert_hex(&keys[0], "b3cbc269186a1d7186a2634b03d09d8cbfbca88c1964b57f8dfa1c27d6516aaf");
    kvist_keys(&name_space, tokens, extras[1], 40, 16, keys);
    assert_hex(&keys[0], "7c5b7694b9330d7bd30c3c53768949d144c1aaab4d25c9603050d05af9406a42");
    assert_hex(&keys[1], "91721287ed4c1d386578d3886462b2b7ffe369513935bb4f894f23937bb364d0");
    kvist_keys(&name_space, tokens, extras[2], 40, 16, keys);
    assert_hex(&keys[1], "cb8fc38a4f02313a01592a056b7f8203b093c2b23b5a98be940411f0024acdbb");

    for (uint32_t i = 0; i < KVIST_KEY_BYTES; i++) {
        params.model.bytes[i] = (uint8_t)i;
    }
    params.dtype = KVIST_DTYPE_F32;
    params.salt = "tenant a";
    params.salt_bytes = 8;
    params.adapter = "lora-1";
    name_space = kvist_namespace(&params);
    assert_hex(&name_space, "b8edc5947366d8c7206a8c6f0ef122b49981da7c0414dc7b748a1aac52badc36");
    memset(tokens, 0xff, sizeof tokens);
    kvist_keys(&name_space, tokens, NULL, 32, 32, keys);
    assert_hex(&keys[0], "e642bd8d0437999390002bac63fc39a406651c722e95f9477dd62421c89f4404");
}

/* Short blocks are padded by hand, long ones hashed in pieces; here the whole message at once. */
static void blocks_of_every_size_have_the_documented_key(void **state)
{
    (void)state;
    enum { TOKENS_MAX = 300 };
    uint32_t tokens[TOKENS_MAX], words[TOKENS_MAX + KV_EXTRA_WORDS];
    uint8_t message[40 + 4 * TOKENS_MAX + 4 + KVIST_KEY_BYTES];
    uint64_t random = kv_test_seed();
    kvist_key_t parent = kv_identity_digest("parent", 6);
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
        tokens[i] = (uint32_t)kv_test_random(&random);
    }
    for (uint32_t count = 0; count <= TOKENS_MAX; count++) {
        kv_put_u32(message, 1);
        memcpy(message + 4, parent.bytes, KVIST_KEY_BYTES);
        kv_put_u32(message + 36, count);
        for (uint32_t i = 0; i < count; i++) {
            kv_put_u32(message + 40 + (size_t)4 * i, tokens[i]);
        }
        size_t at = 40 + (size_t)4 * count;
        kv_put_u32(message + at, 0);
        kvist_key_t expected = kv_identity_digest(message, at + 4);
        kv_identity_words(tokens, NULL, 1, count, words);
        kvist_key_t key = kv_identity_block_key(&parent, words, count);
        assert_memory_equal(key.bytes, expected.bytes, KVIST_KEY_BYTES);
        assert_false(kv_identity_has_extra(words, count));

        kvist_key_t extra = {{0}};
        extra.bytes[kv_test_random(&random) % KVIST_KEY_BYTES] = 1; /* one bit is one */
        kv_put_u32(message + at, KVIST_KEY_BYTES);
        memcpy(message + at + 4, extra.bytes, KVIST_KEY_BYTES);
        expected = kv_identity_digest(message, at + 4 + KVIST_KEY_BYTES);
        kv_identity_words(tokens, &extra, 1, count, words);
        key = kv_identity_block_key(&parent, words, count);
        assert_memory_equal(key.bytes, expected.bytes, KVIST_KEY_BYTES);
        assert_true(kv_identity_has_extra(words, count));
        kvist_key_t back = kv_identity_extra(words, count);
        assert_memory_equal(back.bytes, extra.bytes, KVIST_KEY_BYTES);
    }
}

static void every_field_of_a_namespace_counts(void **state)
{
    (void)state;
    enum { COUNT = 13 };
    kvist_namespace_params_t variants[COUNT];
    kvist_layout_t layouts[COUNT];
    kvist_key_t keys[COUNT];
    for (int i = 0; i < COUNT; i++) {
        layouts[i] = kvist_layout_plain(&SHAPE);
        variants[i] = (kvist_namespace_params_t){.layout = &layouts[i], .adapter = ""};
    }
    kv_block_shape_t deeper = SHAPE;
    deeper.layer_count++;
    variants[1].model.bytes[31] = 1;
    layouts[2] = kvist_layout_plain(&deeper);
    layouts[3].groups[0].parts[0].heads++;
    layouts[4].groups[0].parts[1].dims++;
    layouts[5].block_tokens = 32;
    layouts[6].groups[0].parts[0].element_bytes = 4;
    layouts[10].groups[0].layers[0] ^= 1; /* which layers, and how many */
    layouts[11].groups[0].parts[1].kind = KVIST_PART_ROPE;
    layouts[12].group_count = 2;
    layouts[12].groups[1] = layouts[12].groups[0];
    variants[7].dtype = KVIST_DTYPE_F32;
    variants[8].salt = "a";
    variants[8].salt_bytes = 1;
    variants[9].adapter = "a"; /* not the same as the salt "a" */
    for (int i = 0; i < COUNT; i++) {
        keys[i] = kvist_namespace(&variants[i]);
        for (int j = 0; j < i; j++) {
            assert_memory_not_equal(keys[i].bytes, keys[j].bytes, KVIST_KEY_BYTES);
        }
    }
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void a_fingerprint_is_remembered_until_the_file_changes(void **state)
{
    (void)state;
    char path[512], note[1100];
    snprintf(path, sizeof path, "%s/model", kv_test_folder());
    write_file(path, "abc");
    kvist_key_t key;
    kv_error_t error;
    static const char ABC[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_int_equal(kvist_fingerprint_file(path, kv_test_folder(), &key, &error), KV_OK);
    assert_hex(&key, ABC);

    /* Remembered: a note that was changed by hand, with its guard, is what comes back. */
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    snprintf(note, sizeof note, "%s/fingerprint-%ju-%ju", kv_test_folder(),
        (uintmax_t)status.st_dev, (uintmax_t)status.st_ino);
    FILE *file = fopen(note, "r+");
    assert_non_null(file);
    char line[256], forged[2 * KVIST_KEY_BYTES + 1], guard_text[17];
    assert_non_null(fgets(line, sizeof line, file));
    memset(forged, '7', sizeof forged - 1);
    forged[sizeof forged - 1] = '\0';
    kvist_key_t guard = kv_identity_digest(forged, sizeof forged - 1);
    kv_hex_encode(guard.bytes, 8, guard_text);
    fseek(file, (long)strlen(line), SEEK_SET);
    fprintf(file, "%s %s\n", forged, guard_text);
    fclose(file);
    assert_int_equal(kvist_fingerprint_file(path, kv_test_folder(), &key, &error), KV_OK);
    assert_hex(&key, forged);

    /* A damaged note, no note folder, a changed file: read again. */
    write_file(note, "kvist-fingerprint 1 nonsense\n");
    assert_int_equal(kvist_fingerprint_file(path, kv_test_folder(), &key, &error), KV_OK);
    assert_hex(&key, ABC);
    assert_int_equal(kvist_fingerprint_file(path, NULL, &key, &error), KV_OK);
    assert_hex(&key, ABC);
    write_file(path, "abd");
    struct utimbuf times = {1, 1};
    assert_int_equal(utime(path, &times), 0);
    assert_int_equal(kvist_fingerprint_file(path, kv_test_folder(), &key, &error), KV_OK);
    assert_hex(&key, "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9");

    assert_int_equal(kvist_fingerprint_file("/nonexistent", NULL, &key, &error), KV_MISSING);
    assert_int_equal(kvist_fingerprint_file("/dev/null", NULL, &key, &error), KV_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_as_documented),
        cmocka_unit_test(blocks_of_every_size_have_the_documented_key),
        cmocka_unit_test(every_field_of_a_namespace_counts),
        cmocka_unit_test(a_fingerprint_is_remembered_until_the_file_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
