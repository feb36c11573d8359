import { expect, test } from 'vitest'

import { refusalIn } from './refusal'

test('a reason and the id that finds it in the logs are read', () => {
  expect(refusalIn('#sign-in=taken&request-id=req_0197c5a0-0000-7000-8000-000000000000')).toEqual({
    why: 'taken',
    requestId: 'req_0197c5a0-0000-7000-8000-000000000000',
  })
})

test('what is no reason of ours is none, whoever made the link', () => {
  for (const hash of ['', '#', '#top', '#sign-in=', '#sign-in=hacked', '#sign-in=toString', '#why=taken']) {
    expect(refusalIn(hash), hash).toBeNull()
  }
})

test('an id that reads like words is not shown', () => {
  for (const id of ['Call%20me%20at%20555', '<b>x</b>', '', 'x'.repeat(129)]) {
    expect(refusalIn(`#sign-in=taken&request-id=${id}`)).toEqual({ why: 'taken', requestId: null })
  }
})
