"""Templates of the demo bench in the form of FLAN's flan/templates.py."""

PATTERNS = {
    "hotel_reviews": [
        (
            "Read what a guest says of a hotel. Is the opinion good or bad?\n{text}\n{options_}",
            "{answer}",
        ),
        ("{text}\nWhat does the guest think of the hotel?\n{options_}", "{answer}"),
        ("Opinion of a guest: {text}\nIs it good or bad?\n{options_}", "{answer}"),
        ("Write what a guest says who has a {answer} opinion of a hotel.", "{text}"),
    ],
    "plan_stance": [
        (
            "A citizen writes about a new plan. Is the stance positive or negative?\n"
            "{text}\n{options_}",
            "{answer}",
        ),
        ("{text}\nWhat does the citizen think of the plan?\n{options_}", "{answer}"),
        ("Stance of a citizen: {text}\nIs it positive or negative?\n{options_}", "{answer}"),
    ],
    "verb_agreement": [
        (
            "Does the verb fit the subject of the sentence? Answer yes or no.\n{text}\n{options_}",
            "{answer}",
        ),
        ("{text}\nDoes the verb fit its subject?\n{options_}", "{answer}"),
        ("{text}\nAre subject and verb of this sentence right?\n{options_}", "{answer}"),
    ],
    "where_works": [
        ("{context}\n{question}", "{answer}"),
        (
            "Two people work in two places. Answer the question with a place.\n"
            "{context} {question}",
            "{answer}",
        ),
        ("{context}\nQuestion: {question}", "{answer}"),
        ("{context}\nThe answer is: {answer}. Write the question.", "{question}"),
    ],
    "who_works": [
        ("{context}\n{question}", "{answer}"),
        (
            "Two people work in two places. Answer the question with a name.\n{context} {question}",
            "{answer}",
        ),
        ("{context}\nQuestion: {question}", "{answer}"),
    ],
    "larger_number": [
        ("Two numbers are given. Write the larger number.\n{numbers}", "{answer}"),
        ("{numbers}\nWhich of the two numbers is larger?", "{answer}"),
        ("Write the larger one of these numbers: {numbers}", "{answer}"),
    ],
}
