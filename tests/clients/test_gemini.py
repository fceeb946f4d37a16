"""Google's own client, unchanged: generateContent whole and streamed, from threads and from
coroutines, cachedContents from create to delete, tools, counts, errors."""
import asyncio
import datetime
import json
import unittest
import urllib.request

import service
from google import genai
from google.genai import errors, types


def client():
    return genai.Client(api_key="none", http_options=types.HttpOptions(
        base_url=service.endpoint, timeout=1000 * service.ANSWER_LIMIT_S))


def config(**fields):
    return types.GenerateContentConfig(temperature=0, max_output_tokens=12, **fields)


def asked(contents, **fields):
    return {"model": service.model, "contents": contents, "config": config(**fields)}


def post(path, body):
    """Without the client: the whole answer as JSON, and its type."""
    request = urllib.request.Request(service.endpoint + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=service.ANSWER_LIMIT_S) as answer:
        return json.load(answer), answer.headers["Content-Type"]


class Generate(unittest.TestCase):
    def test_whole(self):
        with client() as api:
            answer = api.models.generate_content(**asked("Name a colour."))
            count = api.models.count_tokens(model=service.model, contents="Name a colour.")
        self.assertTrue(answer.text)
        candidate = answer.candidates[0]
        self.assertEqual((candidate.index or 0, candidate.content.role), (0, "model"))
        self.assertIn(candidate.finish_reason, (types.FinishReason.STOP,
                                                types.FinishReason.MAX_TOKENS))
        usage = answer.usage_metadata
        self.assertEqual(usage.prompt_token_count, count.total_tokens)
        self.assertEqual(usage.total_token_count,
                         usage.prompt_token_count + usage.candidates_token_count)
        self.assertTrue(1 <= usage.candidates_token_count <= 12)

    def test_streamed_is_what_whole_is(self):
        fields = asked(service.prompt())
        with client() as api:
            whole = api.models.generate_content(**fields)
            pieces = list(api.models.generate_content_stream(**fields))
        self.assertEqual("".join(piece.text or "" for piece in pieces), whole.text)
        self.assertEqual(pieces[-1].candidates[0].finish_reason,
                         whole.candidates[0].finish_reason)
        self.assertEqual(pieces[-1].usage_metadata.candidates_token_count,
                         whole.usage_metadata.candidates_token_count)

    def test_coroutines(self):
        fields = asked(service.prompt())

        async def ask():
            async with client().aio as api:
                whole = await api.models.generate_content(**fields)
                text = ""
                async for piece in await api.models.generate_content_stream(**fields):
                    text += piece.text or ""
                return whole.text, text
        whole, text = asyncio.run(ask())
        self.assertEqual(text, whole)

    def test_a_chat_finds_its_turns_again(self):
        with client() as api:
            chat = api.chats.create(model=service.model,
                                    config=config(system_instruction="Answer briefly."))
            first = chat.send_message(service.prompt(120))
            second = chat.send_message("And then?")
        self.assertGreaterEqual(second.usage_metadata.cached_content_token_count,
                                first.usage_metadata.prompt_token_count
                                - 2 * service.BLOCK_TOKENS)

    def test_stops_and_candidates(self):
        with client() as api:
            stopped = api.models.generate_content(
                **asked("Name two colours.", stop_sequences=[" "]))
            several = api.models.generate_content(
                **asked("Name two colours.", candidate_count=2))
        self.assertEqual(stopped.candidates[0].finish_reason, types.FinishReason.STOP)
        self.assertNotIn(" ", stopped.text or "")
        self.assertEqual(len(several.candidates), 2)
        self.assertEqual({one.index or 0 for one in several.candidates}, {0, 1})

    def test_tools_and_their_results_are_taken(self):
        look = types.FunctionDeclaration(
            name="look", description="Looks at the weather.",
            parameters=types.Schema(type="OBJECT", properties={
                "place": types.Schema(type="STRING")}))
        tools = {"tools": [types.Tool(function_declarations=[look])],
                 "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True)}
        question = types.UserContent("How is the weather in Oslo?")
        said = [question,
                types.ModelContent(types.Part.from_function_call(name="look",
                                                                 args={"place": "Oslo"})),
                types.UserContent(types.Part.from_function_response(name="look",
                                                                    response={"is": "rain"}))]
        with client() as api:
            without = api.models.generate_content(**asked([question]))
            first = api.models.generate_content(**asked([question], **tools))
            after = api.models.generate_content(**asked(said, **tools))
        counts = [answer.usage_metadata.prompt_token_count for answer in (without, first, after)]
        self.assertEqual(counts, sorted(set(counts)))

    def test_a_call_whole_and_streamed(self):
        said = []
        for city in service.CITIES:
            said += [types.UserContent(service.QUESTION.format(city)),
                     types.ModelContent(types.Part.from_function_call(
                         name=service.FORECAST, args={"city": city})),
                     types.UserContent(types.Part.from_function_response(
                         name=service.FORECAST, response={"is": service.WEATHER}))]
        said.append(types.UserContent(service.QUESTION.format(service.ASKED_CITY)))
        function = types.FunctionDeclaration(
            name=service.FORECAST, description=service.FORECAST_TEXT,
            parameters_json_schema=service.FORECAST_TAKES)
        fields = {"model": service.model, "contents": said, "config": types.GenerateContentConfig(
            temperature=0, max_output_tokens=48,
            tools=[types.Tool(function_declarations=[function])],
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True))}
        with client() as api:
            whole = api.models.generate_content(**fields)
            pieces = list(api.models.generate_content_stream(**fields))
        calls = [call for piece in pieces for call in piece.function_calls or []]
        for found in (whole.function_calls, calls):
            self.assertEqual([(call.name, call.args) for call in found],
                             [(service.FORECAST, {"city": service.ASKED_CITY})])

    def test_a_stream_as_an_array(self):
        """Without ?alt=sse it is one JSON text; names may be in snake_case."""
        pieces, kind = post(f"/v1/models/{service.model}:streamGenerateContent", {
            "contents": [{"parts": [{"text": "Name a colour."}]}],
            "generation_config": {"temperature": 0, "max_output_tokens": 12}})
        with client() as api:
            whole = api.models.generate_content(**asked("Name a colour."))
        self.assertEqual(kind, "application/json")
        self.assertEqual("".join(piece["candidates"][0]["content"]["parts"][0]["text"]
                                 for piece in pieces), whole.text)

    def test_it_is_the_prompt_that_openais_messages_make(self):
        with client() as api:
            answer = api.models.generate_content(**asked(
                [types.UserContent("Say hello."), types.ModelContent("Hello."),
                 types.UserContent("Again.")], system_instruction="Answer briefly."))
        other, _ = post("/v1/chat/completions", {
            "model": service.model, "temperature": 0, "max_tokens": 12, "messages": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": "Say hello."},
                {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Again."}]})
        self.assertEqual(answer.usage_metadata.prompt_token_count, other["usage"]["prompt_tokens"])
        self.assertEqual(answer.text, other["choices"][0]["message"]["content"])

    def test_logprobs(self):
        with client() as api:
            answer = api.models.generate_content(
                **asked("Name a colour.", response_logprobs=True, logprobs=3))
        result = answer.candidates[0].logprobs_result
        self.assertTrue(result.chosen_candidates)
        self.assertEqual(len(result.chosen_candidates), len(result.top_candidates))
        for chosen, tops in zip(result.chosen_candidates, result.top_candidates):
            self.assertEqual(len(tops.candidates), 3)
            self.assertEqual(tops.candidates[0].token_id, chosen.token_id)  # greedy
            self.assertLessEqual(chosen.log_probability, 0)

    def test_models(self):
        with client() as api:
            names = [model.name for model in api.models.list()]
            self.assertEqual(names, ["models/" + service.model])
            self.assertGreater(api.models.get(model=service.model).input_token_limit, 0)


class CachedContents(unittest.TestCase):
    def test_from_create_to_delete(self):
        text = service.prompt(120)
        now = datetime.datetime.now(datetime.timezone.utc)
        with client() as api:
            made = api.caches.create(model=service.model, config=types.CreateCachedContentConfig(
                display_name="a story", ttl="600s", contents=[types.UserContent(text)],
                system_instruction="Answer briefly."))
            self.assertTrue(made.name.startswith("cachedContents/"))
            self.assertEqual((made.display_name, made.model),
                             ("a story", "models/" + service.model))
            self.assertGreater(made.usage_metadata.total_token_count, 100)
            self.assertGreater(made.expire_time, now + datetime.timedelta(seconds=300))
            self.assertEqual(api.caches.get(name=made.name), made)
            self.assertIn(made.name, [content.name for content in api.caches.list()])
            answer = api.models.generate_content(
                **asked("What was it about?", cached_content=made.name))
            usage = answer.usage_metadata
            self.assertGreaterEqual(
                usage.cached_content_token_count,
                made.usage_metadata.total_token_count - 2 * service.BLOCK_TOKENS)
            self.assertGreater(usage.prompt_token_count, made.usage_metadata.total_token_count)
            later = api.caches.update(name=made.name, config=types.UpdateCachedContentConfig(
                ttl="7200s"))
            self.assertGreater(later.expire_time, made.expire_time)
            api.caches.delete(name=made.name)
            with self.assertRaises(errors.ClientError) as caught:
                api.caches.get(name=made.name)
            self.assertEqual(caught.exception.code, 403)
            with self.assertRaises(errors.ClientError):
                api.models.generate_content(**asked("And?", cached_content=made.name))

    def test_pages_and_what_it_keeps_to_itself(self):
        with client() as api:
            made = [api.caches.create(model=service.model, config=types.CreateCachedContentConfig(
                contents=[types.UserContent(service.prompt(40))])) for _ in range(3)]
            kept_s = (made[0].expire_time - made[0].create_time).total_seconds()
            self.assertTrue(3600 - service.ANSWER_LIMIT_S <= kept_s <= 3600, kept_s)
            listed = [content.name for content in api.caches.list(config={"page_size": 1})]
            self.assertEqual([name for name in listed if name in {one.name for one in made}],
                             [one.name for one in made])
            with self.assertRaises(errors.ClientError) as caught:
                api.models.generate_content(**asked(
                    "And?", cached_content=made[0].name, system_instruction="Another."))
            for one in made:
                api.caches.delete(name=one.name)
        self.assertEqual(caught.exception.code, 400)
        self.assertIn("systemInstruction", caught.exception.message)

    def test_what_it_says_is_what_the_whole_prompt_says(self):
        """A content and a question are the prompt that both make."""
        text = service.prompt(80)
        with client() as api:
            made = api.caches.create(model=service.model, config=types.CreateCachedContentConfig(
                ttl="600s", contents=[types.UserContent(text)]))
            named = api.models.generate_content(
                **asked([types.UserContent("What was it about?")], cached_content=made.name))
            whole = api.models.generate_content(
                **asked([types.UserContent(text), types.UserContent("What was it about?")]))
            api.caches.delete(name=made.name)
        self.assertEqual(named.text, whole.text)
        self.assertEqual(named.usage_metadata.prompt_token_count,
                         whole.usage_metadata.prompt_token_count)


class Errors(unittest.TestCase):
    def test_a_field_that_is_wrong_is_named(self):
        for fields, name in (({"top_p": 7.0}, "topP"), ({"stop_sequences": [""]}, "stopSequences"),
                             ({"response_mime_type": "application/json"}, "responseMimeType")):
            with self.subTest(fields), client() as api, \
                    self.assertRaises(errors.ClientError) as caught:
                api.models.generate_content(**asked("Hello", **fields))
            self.assertEqual((caught.exception.code, caught.exception.status),
                             (400, "INVALID_ARGUMENT"))
            self.assertIn(name, caught.exception.message)

    def test_what_is_not_there(self):
        with client() as api:
            with self.assertRaises(errors.ClientError) as model:
                api.models.generate_content(**{**asked("Hello"), "model": "another"})
            with self.assertRaises(errors.ClientError) as content:
                api.caches.get(name="cachedContents/nothing")
        self.assertEqual((model.exception.code, content.exception.code), (404, 403))

    def test_coroutines_hear_it_too(self):
        async def ask():
            async with client().aio as api:
                await api.models.generate_content(**asked("Hello", top_p=7.0))
        with self.assertRaises(errors.ClientError):
            asyncio.run(ask())
