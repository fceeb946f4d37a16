"""OpenAI's own client, unchanged: chat and text completions, whole and streamed, from threads and
from coroutines. It checks each answer against its types (_strict_response_validation), but for the
events of text completions, whose finish_reason is null before the last one at OpenAI too."""
import asyncio
import json
import unittest

import openai

import service


def client(strict=True):
    return openai.OpenAI(base_url=service.endpoint + "/v1", api_key="none", max_retries=0,
                         timeout=service.ANSWER_LIMIT_S, _strict_response_validation=strict)


def async_client(strict=True):
    return openai.AsyncOpenAI(base_url=service.endpoint + "/v1", api_key="none", max_retries=0,
                              timeout=service.ANSWER_LIMIT_S, _strict_response_validation=strict)


def asked(text, **fields):
    return {"model": service.model, "messages": [{"role": "user", "content": text}],
            "max_tokens": 12, "temperature": 0, **fields}


def completed(prompt, **fields):
    return {"model": service.model, "prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}


class Models(unittest.TestCase):
    def test_list(self):
        with client() as api:
            models = api.models.list().data
        self.assertEqual([model.id for model in models], [service.model])
        self.assertEqual(models[0].object, "model")

    def test_retrieve(self):
        with client() as api:
            model = api.models.retrieve(service.model)
            with self.assertRaises(openai.NotFoundError) as caught:
                api.models.retrieve("another")
        self.assertEqual((model.id, model.object), (service.model, "model"))
        self.assertEqual(caught.exception.code, "model_not_found")


class Chat(unittest.TestCase):
    def test_whole(self):
        with client() as api:
            answer = api.chat.completions.create(**asked("Name a colour."))
        self.assertEqual((answer.object, answer.model), ("chat.completion", service.model))
        choice = answer.choices[0]
        self.assertEqual((len(answer.choices), choice.index), (1, 0))
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens,
                         answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertTrue(1 <= answer.usage.completion_tokens <= 12)

    def test_streamed_is_what_whole_is(self):
        fields = asked(service.prompt())
        with client() as api:
            whole = api.chat.completions.create(**fields)
            events = list(api.chat.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}))
        pieces = [event.choices[0] for event in events if event.choices]
        self.assertEqual(pieces[0].delta.role, "assistant")
        self.assertEqual("".join(piece.delta.content or "" for piece in pieces),
                         whole.choices[0].message.content)
        self.assertEqual([piece.finish_reason for piece in pieces if piece.finish_reason],
                         [whole.choices[0].finish_reason])
        self.assertEqual(len({event.id for event in events}), 1)
        usages = [event.usage for event in events if event.usage]
        self.assertEqual(len(usages), 1)
        self.assertIs(events[-1].usage, usages[0])
        self.assertEqual(events[-1].choices, [])
        self.assertEqual(usages[0].completion_tokens, whole.usage.completion_tokens)

    def test_a_stream_without_usage_has_none(self):
        with client() as api:
            events = list(api.chat.completions.create(**asked("Hello"), stream=True))
        self.assertTrue(all(event.usage is None and event.choices for event in events))

    def test_the_stream_helper(self):
        """client.chat.completions.stream puts the pieces together itself, and takes an answer that
        ran out of tokens for an error."""
        fields = asked("Name two colours.", stop=[" "])
        with client() as api, api.chat.completions.stream(**fields) as stream:
            texts = [event.content for event in stream if event.type == "content.done"]
            whole = stream.get_final_completion()
        self.assertEqual(texts, [whole.choices[0].message.content])
        self.assertTrue(texts[0])

    def test_coroutines(self):
        fields = asked(service.prompt())

        async def ask():
            async with async_client() as api:
                whole = await api.chat.completions.create(**fields)
                stream = await api.chat.completions.create(**fields, stream=True)
                text = ""
                async for event in stream:
                    text += event.choices[0].delta.content or ""
                both = await asyncio.gather(*[
                    api.chat.completions.create(**asked(f"{number}, and the next number?"))
                    for number in range(4)])
                return whole.choices[0].message.content, text, both
        whole, text, both = asyncio.run(ask())
        self.assertEqual(text, whole)
        self.assertEqual(len({answer.id for answer in both}), 4)

    def test_roles_parts_and_turns(self):
        with client() as api:
            first = api.chat.completions.create(
                model=service.model, max_completion_tokens=8, temperature=0, messages=[
                    {"role": "developer", "content": "Answer briefly."},
                    {"role": "user", "content": [{"type": "text", "text": "Say "},
                                                 {"type": "text", "text": "hello."}]}])
            second = api.chat.completions.create(
                model=service.model, max_completion_tokens=8, temperature=0, messages=[
                    {"role": "system", "content": "Answer briefly."},
                    {"role": "user", "content": "Say hello."}])
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)
        self.assertEqual(first.usage.prompt_tokens, second.usage.prompt_tokens)

    def test_stop_and_seed(self):
        warm = {"temperature": 1.5, "top_p": 0.9, "seed": 4711, "max_tokens": 20}
        fields = asked("Tell me a story.", **warm)
        with client() as api:
            one, two = (api.chat.completions.create(**fields).choices[0] for _ in range(2))
            text = one.message.content
            stop = text[len(text) // 2:][:4]
            cut = api.chat.completions.create(**fields, stop=[stop]).choices[0]
        self.assertEqual(text, two.message.content)
        self.assertEqual(cut.message.content, text[:text.index(stop)])
        self.assertEqual(cut.finish_reason, "stop")

    def test_a_client_that_leaves_its_stream(self):
        with client() as api:
            stream = api.chat.completions.create(
                **asked("Tell me a long story.", max_tokens=400), stream=True)
            next(iter(stream))
            stream.close()
            self.assertTrue(api.chat.completions.create(**asked("Hello")).choices)


def streamed(api, count, **fields):
    """Each choice of a streamed chat: text, logprobs, calls by their index, finish."""
    choices = [{"text": "", "logprobs": [], "calls": {}, "finish": None} for _ in range(count)]
    for event in api.chat.completions.create(**fields, stream=True):
        for piece in event.choices:
            choice = choices[piece.index]
            choice["text"] += piece.delta.content or ""
            choice["logprobs"] += piece.logprobs.content if piece.logprobs else []
            choice["finish"] = piece.finish_reason or choice["finish"]
            for call in piece.delta.tool_calls or []:
                choice["calls"][call.index] = (call.function.name, call.function.arguments)
    return choices


class Choices(unittest.TestCase):
    def test_several_streamed_are_what_several_whole_are(self):
        fields = asked(service.prompt(), n=3, temperature=1.2, seed=99)
        with client() as api:
            whole = api.chat.completions.create(**fields)
            pieces = streamed(api, 3, **fields)
            alone = api.chat.completions.create(**{**fields, "n": 1})
        texts = [choice.message.content for choice in whole.choices]
        self.assertEqual([choice.index for choice in whole.choices], [0, 1, 2])
        self.assertEqual([piece["text"] for piece in pieces], texts)
        self.assertEqual([piece["finish"] for piece in pieces],
                         [choice.finish_reason for choice in whole.choices])
        self.assertEqual(alone.choices[0].message.content, texts[0])
        self.assertEqual(alone.usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertGreater(whole.usage.completion_tokens, alone.usage.completion_tokens)

    def test_several_prompts_and_several_answers(self):
        with client(strict=False) as api:
            fields = completed([service.prompt(20), service.prompt(20)], n=2, max_tokens=4)
            answer = api.completions.create(**fields)
            texts = [""] * 4
            for event in api.completions.create(**fields, stream=True):
                for choice in event.choices:
                    texts[choice.index] += choice.text
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        self.assertEqual([choice.text for choice in answer.choices], texts)
        self.assertEqual(texts[0], texts[1])  # greedy


class Logprobs(unittest.TestCase):
    def test_of_a_chat(self):
        fields = asked("Name a colour.", logprobs=True, top_logprobs=3)
        with client() as api:
            whole = api.chat.completions.create(**fields)
            pieces = streamed(api, 1, **fields)[0]
        places = whole.choices[0].logprobs.content
        self.assertEqual(pieces["logprobs"], places)
        said = b"".join(bytes(place.bytes) for place in places)
        self.assertEqual(said.decode(), whole.choices[0].message.content)
        for place in places:
            self.assertEqual(len(place.top_logprobs), 3)
            self.assertEqual(place.top_logprobs[0].token, place.token)  # greedy
            self.assertEqual(place.top_logprobs[0].logprob, place.logprob)
            self.assertLessEqual(place.logprob, 0)
            self.assertGreaterEqual(place.logprob, place.top_logprobs[1].logprob)

    def test_of_a_text(self):
        fields = completed("Once upon a time", logprobs=2)
        with client(strict=False) as api:
            whole = api.completions.create(**fields).choices[0]
            pieces = [event.choices[0] for event in api.completions.create(**fields, stream=True)
                      if event.choices and event.choices[0].logprobs]
        said = whole.logprobs
        self.assertEqual(sum((piece.logprobs.tokens for piece in pieces), []), said.tokens)
        self.assertEqual(sum((piece.logprobs.token_logprobs for piece in pieces), []),
                         said.token_logprobs)
        self.assertEqual(sum((piece.logprobs.text_offset for piece in pieces), []),
                         said.text_offset)
        for token, place in zip(said.tokens, said.text_offset):
            self.assertEqual(whole.text[place:place + len(token)], token)
        for token, logprob, tops in zip(said.tokens, said.token_logprobs, said.top_logprobs):
            self.assertEqual(max(tops.values()), logprob)
            self.assertEqual(tops[token], logprob)


def call_of(city, number):
    return {"id": f"call_{number}", "type": "function",
            "function": {"name": service.FORECAST, "arguments": json.dumps({"city": city})}}


def asked_for_a_call(**fields):
    messages = []
    for number, city in enumerate(service.CITIES):
        messages += [{"role": "user", "content": service.QUESTION.format(city)},
                     {"role": "assistant", "content": None, "tool_calls": [call_of(city, number)]},
                     {"role": "tool", "tool_call_id": f"call_{number}", "content": service.WEATHER}]
    messages.append({"role": "user", "content": service.QUESTION.format(service.ASKED_CITY)})
    tool = {"type": "function",
            "function": {"name": service.FORECAST, "description": service.FORECAST_TEXT,
                         "parameters": service.FORECAST_TAKES}}
    return {"model": service.model, "messages": messages, "tools": [tool], "max_tokens": 48,
            "temperature": 0, **fields}


class Tools(unittest.TestCase):
    def test_a_call_whole_streamed_and_given_back(self):
        fields = asked_for_a_call(logprobs=True)
        with client() as api:
            whole = api.chat.completions.create(**fields)
            pieces = streamed(api, 1, **fields)[0]
            message = whole.choices[0].message
            after = api.chat.completions.create(**{**fields, "messages": [
                *fields["messages"], message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sun."}]})
        self.assertEqual(whole.choices[0].finish_reason, "tool_calls")
        self.assertIsNone(message.content)
        self.assertEqual(len(message.tool_calls), 1)
        call = message.tool_calls[0].function
        self.assertEqual((call.name, json.loads(call.arguments)),
                         (service.FORECAST, {"city": service.ASKED_CITY}))
        self.assertEqual(pieces["calls"], {0: (call.name, call.arguments)})
        self.assertEqual((pieces["text"], pieces["finish"]), ("", "tool_calls"))
        self.assertEqual(pieces["logprobs"], whole.choices[0].logprobs.content)
        # What the model wrote makes the tokens that it was: its KV is found again.
        self.assertGreaterEqual(after.usage.prompt_tokens_details.cached_tokens,
                                whole.usage.total_tokens - 2 * service.BLOCK_TOKENS)

    def test_each_choice_has_its_own(self):
        with client() as api:
            whole = api.chat.completions.create(**asked_for_a_call(n=2))
            pieces = streamed(api, 2, **asked_for_a_call(n=2))
        calls = [choice.message.tool_calls[0] for choice in whole.choices]
        self.assertEqual(len({call.id for call in calls}), 2)
        for call, piece in zip(calls, pieces):
            self.assertEqual(piece["calls"], {0: (call.function.name, call.function.arguments)})

    def test_coroutines(self):
        async def ask():
            async with async_client() as api:
                return await api.chat.completions.create(**asked_for_a_call())
        answer = asyncio.run(ask())
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")

    def test_none_and_what_nothing_here_can_force(self):
        named = {"type": "function", "function": {"name": service.FORECAST}}
        with client() as api:
            none = api.chat.completions.create(**asked_for_a_call(tool_choice="none"))
            auto = api.chat.completions.create(**asked_for_a_call(tool_choice="auto"))
            for choice in ("required", named):
                with self.assertRaises(openai.BadRequestError) as caught:
                    api.chat.completions.create(**asked_for_a_call(tool_choice=choice))
                self.assertEqual(caught.exception.param, "tool_choice")
        self.assertIsNone(none.choices[0].message.tool_calls)
        self.assertLess(none.usage.prompt_tokens, auto.usage.prompt_tokens)
        self.assertEqual(len(auto.choices[0].message.tool_calls), 1)


class Cache(unittest.TestCase):
    def test_the_second_ask_says_what_it_found(self):
        fields = asked(service.prompt(150))
        with client() as api:
            first = api.chat.completions.create(**fields)
            raw = api.chat.completions.with_raw_response.create(**fields)
            second = raw.parse()
            events = list(api.chat.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}))
        prompt_tokens = first.usage.prompt_tokens
        for usage in (second.usage, events[-1].usage):
            self.assertEqual(usage.prompt_tokens, prompt_tokens)
            self.assertGreaterEqual(usage.prompt_tokens_details.cached_tokens,
                                    prompt_tokens - 2 * service.BLOCK_TOKENS)
            self.assertLess(usage.prompt_tokens_details.cached_tokens, prompt_tokens)
        # The template's own first tokens may be there from another prompt.
        self.assertLess(first.usage.prompt_tokens_details.cached_tokens, prompt_tokens / 2)
        self.assertEqual(int(raw.headers["x-kvist-hit-tokens"]),
                         second.usage.prompt_tokens_details.cached_tokens)
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)

    def test_the_extension_passes_through(self):
        """extra_body is how the client lets a server's own fields through."""
        text = service.prompt(100)
        with client() as api:
            def cached(**kvist):
                answer = api.chat.completions.create(**asked(text), extra_body={"kvist": kvist})
                return answer.usage.prompt_tokens_details.cached_tokens
            cached()
            self.assertEqual(cached(cache_mode="bypass"), 0)
            self.assertEqual(cached(salt="a tenant of its own"), 0)
            self.assertGreater(cached(), 0)


class Completions(unittest.TestCase):
    def test_whole_streamed_and_tokens(self):
        fields = completed("Once upon a time")
        with client(strict=False) as api:
            whole = api.completions.create(**fields)
            events = list(api.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}))
            single = api.completions.create(**completed([[1, 100, 200, 300]]))
        self.assertEqual((whole.object, whole.choices[0].index), ("text_completion", 0))
        self.assertEqual("".join(choice.text for event in events for choice in event.choices),
                         whole.choices[0].text)
        self.assertEqual(events[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(single.usage.prompt_tokens, 4)

    def test_coroutines(self):
        fields = completed("The capital of France is")

        async def ask():
            async with async_client(strict=False) as api:
                whole = await api.completions.create(**fields)
                text = ""
                async for event in await api.completions.create(**fields, stream=True):
                    text += event.choices[0].text
                return whole.choices[0].text, text
        whole, text = asyncio.run(ask())
        self.assertEqual(text, whole)


class Errors(unittest.TestCase):
    def refused(self, kind, **fields):
        with client() as api, self.assertRaises(kind) as caught:
            api.chat.completions.create(**asked("Hello", **fields))
        self.assertTrue(caught.exception.message)
        return caught.exception

    def test_a_field_that_is_wrong_is_named(self):
        for fields in ({"temperature": 3}, {"top_p": 0}, {"max_tokens": -1}, {"stop": [""]},
                       {"seed": "x"}, {"response_format": {"type": "json_object"}}):
            with self.subTest(fields):
                error = self.refused(openai.BadRequestError, **fields)
                self.assertEqual(error.status_code, 400)
                self.assertEqual(error.type, "invalid_request_error")
                self.assertTrue(error.param.startswith(next(iter(fields))), error.param)
                self.assertIn(next(iter(fields)), error.message)

    def test_a_model_that_is_not_there(self):
        error = self.refused(openai.NotFoundError, model="another")
        self.assertEqual((error.code, error.param), ("model_not_found", "model"))

    def test_a_prompt_beyond_the_context(self):
        with client() as api, self.assertRaises(openai.BadRequestError) as caught:
            api.chat.completions.create(**asked(service.prompt(9000)))
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_a_path_that_is_not_there(self):
        with client() as api, self.assertRaises(openai.NotFoundError) as caught:
            api.embeddings.create(model=service.model, input="x")
        self.assertIn("/v1/embeddings", caught.exception.message)

    def test_a_body_that_is_too_large(self):
        with client() as api, self.assertRaises(openai.APIStatusError) as caught:
            api.chat.completions.create(**asked("x" * 9_000_000))
        self.assertEqual(caught.exception.status_code, 413)

    def test_coroutines_hear_it_too(self):
        async def ask():
            async with async_client() as api:
                await api.chat.completions.create(**asked("Hello", temperature=-1), stream=True)
        with self.assertRaises(openai.BadRequestError) as caught:
            asyncio.run(ask())
        self.assertEqual(caught.exception.param, "temperature")

    def test_a_server_that_is_not_there(self):
        with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none",
                           max_retries=0) as api, self.assertRaises(openai.APIConnectionError):
            api.models.list()
